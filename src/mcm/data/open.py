"""A source by its name: a folder, table, tar or URL, or the laboratory's own renderings ("pocket:broadcast")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mcm.data.pictures import PICTURE_SUFFIXES
from mcm.data.poses import LAYOUT, Poses, read_pictures, read_poses
from mcm.data.prepared import is_prepared
from mcm.data.report import SourceReport
from mcm.data.sources import Clip, Picture, PictureFolder, Prompts, VideoFolder
from mcm.errors import UserError, nearest
from mcm.output import silent

LABORATORY_PICTURES = 1024  # of its endless pictures

Progress = Callable[[str, int, int], None]


class ClipSource(Protocol):
    """Clips by number; `report` says what was found and what was left out, and why."""

    report: SourceReport

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Clip: ...
    def __iter__(self) -> Iterator[Clip]: ...


class PictureSource(Protocol):
    """Pictures by number; `report` as for clips."""

    report: SourceReport

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Picture: ...
    def __iter__(self) -> Iterator[Picture]: ...


def open_videos(
    place: str,
    frames: int,
    size: tuple[int, int],
    count: int,
    stride: int | None = None,
    fps: float | None = None,
    progress: Progress = silent,
    split: str = "student",
) -> ClipSource:
    """The clips at `place`, each of `frames` frames of `size` (H, W).

    count, split: which of the laboratory's endless films; a folder gives all that it has. stride or fps: how films
    are read, every frame by default.

    Raises:
        UserError: where there is nothing usable, or the laboratory's source is unknown.
    """
    from mcm.pocket import sources as pocket

    _check_raw(place, "latents, no films")
    domain = pocket.domain(place)
    if domain is not None:
        return pocket.PocketClips(domain, frames, size, count, split)
    return VideoFolder(place, frames, size, stride, fps, progress=lambda i, n: progress("looking at the videos", i, n))


def open_pictures(
    place: str,
    size: tuple[int, int],
    progress: Progress = silent,
    count: int = LABORATORY_PICTURES,
    split: str = "pictures",
) -> PictureSource:
    """The pictures at `place`, each of `size` (H, W); see `open_videos`."""
    from mcm.pocket import sources as pocket

    _check_raw(place, "pictures in shards")
    domain = pocket.domain(place)
    if domain is not None:
        return pocket.PocketPictures(domain, size, count, split)
    return PictureFolder(place, size, progress=lambda i, n: progress("looking at the pictures", i, n))


def open_prompts(place: str, count: int, split: str = "student") -> Prompts:
    """The prompts in a file; of the laboratory's endless films, "pocket:broadcast", the first `count` captions."""
    from mcm.pocket import sources as pocket

    if pocket.domain(place) is not None:
        return Prompts(pocket.captions(count, split))
    return Prompts(place)


def _check_raw(place: str, what: str) -> None:
    """UserError for what `mcm prepare` made; in its folder lies a contact sheet, which is no picture of the source."""
    if is_prepared(place):
        raise UserError(f"{place} holds prepared {what}: only a run of distillation takes it")


def open_pose(place: str | Path | Poses, frames: int, size: tuple[int, int]) -> Tensor:
    """The skeleton pictures of a pose, float (3, T, H, W) in [0, 1] for T = `frames` and `size` (H, W).

    place: OpenPose keypoints (a JSON file of all frames, a folder with one a frame), a folder of skeleton pictures, an
    action of the laboratory ("walk"), or `Poses`. However many frames it has, the video has the whole of it.

    Raises:
        UserError: where there is nothing of the kind, or it cannot be used.
    """
    from mcm.pocket import sources as pocket

    if isinstance(place, Poses):
        return place.pictures(frames, size)
    path = Path(place).expanduser()
    if path.is_file():
        return read_poses(path).pictures(frames, size)
    if path.is_dir():
        inside = {found.suffix.lower() for found in path.iterdir()}
        if ".json" in inside:
            return read_poses(path).pictures(frames, size)
        if inside & {*PICTURE_SUFFIXES}:
            return read_pictures(path, frames, size)
        raise UserError(f"pose {place}: neither .json files nor pictures in that folder; expected {LAYOUT}")
    poses = pocket.action(str(place), frames)
    if poses is None:
        known = pocket.actions()
        raise UserError(
            f"pose {place}: no such file, folder or action; expected {LAYOUT}, or an action of the pocket laboratory "
            f"({', '.join(known)}){nearest(str(place), known)}"
        )
    return poses.pictures(frames, size)
