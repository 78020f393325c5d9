"""The renderer as a source: "pocket:broadcast", "pocket:studio", "pocket:toon", "pocket:relief"; and its actions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mcm.data.poses import Poses
from mcm.data.report import SourceReport
from mcm.data.sources import Clip, Picture
from mcm.errors import UserError, one_of
from mcm.pocket import world
from mcm.pocket.puppet import ACTIONS

PREFIX = "pocket:"
MOMENTS = 8


def domain(name: str) -> str | None:
    """The domain that a source's name asks for, or None when it names no source of the laboratory.

    Raises:
        UserError: for an unknown domain.
    """
    if not name.startswith(PREFIX):
        return None
    wanted = name.removeprefix(PREFIX)
    if wanted not in world.DOMAINS:
        raise one_of("source", name, [PREFIX + d for d in world.DOMAINS])
    return wanted


def actions() -> list[str]:
    """What a puppet can do."""
    return sorted(ACTIONS)


def action(name: str, frames: int) -> Poses | None:
    """The keypoints of an action, "walk" or "pocket:walk", done once in `frames` frames, in the middle and to the
    right; None for any other name.
    """
    name = name.removeprefix(PREFIX)
    if name not in ACTIONS:
        return None
    plain = {"top": "red", "bottom": "blue", "scene": "park", "camera": "still", "seed": 0}
    spec = world.Spec(action=name, phase=0.0, cycles=1.0, facing=1, x=0.0, height=0.78, **plain)
    return poses_of([spec], frames)[0]


def poses_of(specs: list[world.Spec], frames: int) -> list[Poses]:
    """The exact keypoints of the world's clips, as poses."""
    points = world.stage(specs, frames).numpy()
    seen = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)
    return [Poses(clip, canvas=(64, 64)) for clip in seen]


def captions(count: int, split: str) -> list[str]:
    """Of the first `count` clips of a split, whatever the domain."""
    return [world.spec(split, i).caption for i in range(count)]


def _side(size: tuple[int, int]) -> int:
    """The one side of a square; UserError for anything else."""
    if size[0] != size[1]:
        raise UserError(f"the pocket world is square: size {size[0]}x{size[1]} cannot be rendered; give {size[0]}")
    return size[0]


def _number(index: int, count: int) -> int:
    """A source ends where its count does, though the world goes on: whoever counts past it learns so."""
    if not 0 <= index < count:
        raise IndexError(f"item {index} of {count}")
    return index


class PocketClips:
    """The first `count` clips of a split in a domain, rendered when read."""

    def __init__(self, domain: str, frames: int, size: tuple[int, int], count: int, split: str = "student") -> None:
        self.domain, self.frames, self.size, self.split = domain, frames, _side(size), split
        self._count = count
        self.report = SourceReport(count, count, [], "videos", f"{PREFIX}{domain}")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Clip:
        spec = world.spec(self.split, _number(index, self._count))
        video = world.film([spec], self.domain, self.size, self.frames).video[0]
        return Clip(video, spec.caption, f"{self.split}-{index:06d}")

    def __iter__(self) -> Iterator[Clip]:
        return (self[i] for i in range(self._count))


class PocketPictures:
    """The first `count` pictures in a domain: of each clip of the split one of its `MOMENTS`, by its seed."""

    def __init__(self, domain: str, size: tuple[int, int], count: int, split: str = "pictures") -> None:
        self.domain, self.size, self.split = domain, _side(size), split
        self._count = count
        self.report = SourceReport(count, count, [], "pictures", f"{PREFIX}{domain}")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Picture:
        spec = world.spec(self.split, _number(index, self._count))
        image = world.film([spec], self.domain, self.size, MOMENTS, [spec.seed % MOMENTS]).video[0, :, 0]
        return Picture(image, spec.caption, f"{self.split}-{index:06d}")

    def __iter__(self) -> Iterator[Picture]:
        return (self[i] for i in range(self._count))
