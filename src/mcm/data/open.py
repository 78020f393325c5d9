"""A source by its name: a folder or table, or the laboratory's own renderings ("pocket:broadcast")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from mcm.data.report import SourceReport
from mcm.data.sources import Clip, Picture, PictureFolder, VideoFolder
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

    domain = pocket.domain(place)
    if domain is not None:
        return pocket.PocketClips(domain, frames, size, count, split)
    if stride is None and fps is None:
        stride = 1
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

    domain = pocket.domain(place)
    if domain is not None:
        return pocket.PocketPictures(domain, size, count, split)
    return PictureFolder(place, size, progress=lambda i, n: progress("looking at the pictures", i, n))
