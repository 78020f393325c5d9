"""How an item of a source is looked at and decoded: clips of films, and pictures. Readers can be sent to a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mcm.data.captions import Entry
from mcm.data.listing import Wanted
from mcm.data.pictures import PICTURE_SUFFIXES, probe_picture, read_picture
from mcm.data.report import UnreadableError
from mcm.data.video import UnreadableVideo, VideoInfo, probe, read_clip
from mcm.errors import UserError

# fmt: off
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".flv", ".wmv", ".asf", ".mpg", ".mpeg", ".m2v", ".ts",
    ".mts", ".m2ts", ".vob", ".3gp", ".3g2", ".ogv", ".mxf", ".dv", ".gif", ".apng", ".mjpg", ".mjpeg",
    ".y4m", ".h264", ".nut", ".f4v", ".m1v", ".ogg", ".ogm", ".rm", ".rmvb", ".swf",
)
# fmt: on


@dataclass(frozen=True)
class ClipReader:
    """Reads clips of `frames` frames of `size` (H, W); stride (1 where neither is given) or fps: see
    `video.read_clip`. crop: "center" or "random".

    look and read raise `UnreadableError` for a file that cannot be used.
    """

    frames: int
    size: tuple[int, int]
    stride: int | None = None
    fps: float | None = None
    crop: str = "center"

    what: ClassVar[str] = "videos"
    suffixes: ClassVar[Sequence[str]] = VIDEO_SUFFIXES
    layout: ClassVar[str] = (
        "a folder of videos (.mp4, .mov, .webm ...), each with its caption in a .txt or .json of the same name, "
        "or in a captions.csv with the columns file,caption; or WebDataset tars"
    )

    def __post_init__(self) -> None:
        if self.stride is not None and self.fps is not None:
            raise UserError(f"stride is {self.stride} and fps is {self.fps}: give one of them")
        if self.fps is None and self.stride is None:
            object.__setattr__(self, "stride", 1)  # frozen; so that equal ways of reading are equal

    def look(self, entry: Entry) -> VideoInfo:
        """What the header says, which is long enough."""
        info = probe(entry.path)
        if info.why_too_short(self.frames, self.stride, self.fps):
            info = probe(entry.path, count=True)  # a header may promise too little
            reason = info.why_too_short(self.frames, self.stride, self.fps)
            if reason:
                raise UnreadableVideo(reason)
        return info

    def read(self, entry: Entry, rng: torch.Generator | None = None) -> Tensor:
        """float (3, T, H, W) in [-1, 1]. With `rng` start and crop are drawn, else they are the middle."""
        at = 0.5 if rng is None else float(torch.rand((), generator=rng))
        how = {"stride": self.stride, "fps": self.fps, "at": at, "crop": self.crop, "rng": rng}
        return read_clip(entry.path, self.frames, self.size, **how)


@dataclass(frozen=True)
class PictureReader:
    """Reads pictures of `size` (H, W); see `ClipReader`."""

    size: tuple[int, int]
    crop: str = "center"

    what: ClassVar[str] = "pictures"
    suffixes: ClassVar[Sequence[str]] = PICTURE_SUFFIXES
    layout: ClassVar[str] = f"a folder of pictures ({', '.join(PICTURE_SUFFIXES)}), or WebDataset tars"

    def look(self, entry: Entry) -> tuple[int, int]:
        """(H, W) as the header says."""
        return probe_picture(entry.path)

    def read(self, entry: Entry, rng: torch.Generator | None = None) -> Tensor:
        """float (3, H, W) in [-1, 1]."""
        return read_picture(entry.path, self.size, self.crop, rng)


Reader = ClipReader | PictureReader


def wanted(reader: type[Reader] | Reader) -> Wanted:
    """What a source is searched for."""
    return Wanted(reader.suffixes, (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES), reader.layout)


def check_entry(entry: Entry, need_captions: bool) -> None:
    """Raise `UnreadableError` for an item that cannot be used, as far as that shows before its file is opened."""
    if isinstance(entry.path, Path) and not entry.path.exists() and entry.path.is_symlink():
        raise UnreadableError("broken link: the file it points to is gone")
    if entry.caption is None and need_captions:
        raise UnreadableError(entry.fault or "no caption: neither a .txt, a .json nor a table has one")
    if entry.fault is not None and not entry.fault.startswith("no caption"):
        raise UnreadableError(entry.fault)  # there is a caption, or a row, that its owner should mend
