"""Rendered clips kept on disk as bytes, so that every network's training reads them instead of rendering again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcm.pocket import world

_CHUNK = 250


class Corpus:
    """The first `count` clips of a split in one domain: `video` (n, T, 3, H, W) uint8, memory-mapped, and their specs.

    Rendering goes chunk by chunk under temporary names, so a kill costs one chunk at most.
    """

    def __init__(self, work: Path, split: str, domain: str, count: int, size: int = 64, frames: int = 8) -> None:
        folder = work / "corpus" / f"{split}-{domain}-{size}-{frames}"
        folder.mkdir(parents=True, exist_ok=True)
        self._chunks: list[np.ndarray] = []
        self.specs = [world.spec(split, i) for i in range(count)]
        self.domain = domain
        for start in range(0, count, _CHUNK):
            path = folder / f"{start:06d}.npy"
            if not path.exists():
                specs = [world.spec(split, i) for i in range(start, start + _CHUNK)]
                video = world.film(specs, domain, size, frames).video.permute(0, 2, 1, 3, 4)
                partial = path.with_suffix(".partial.npy")
                np.save(partial, ((video + 1) * 127.5).round().to(torch.uint8).numpy())
                partial.rename(path)
            self._chunks.append(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.specs)

    def clips(self, index: list[int]) -> Tensor:
        """Clips by number: (B, 3, T, H, W) in [-1, 1]."""
        rows = np.stack([self._chunks[i // _CHUNK][i % _CHUNK] for i in index])
        return torch.from_numpy(rows).permute(0, 2, 1, 3, 4).float() / 127.5 - 1

    def frames(self, index: list[int], moments: list[int]) -> Tensor:
        """One frame of each clip: (B, 3, H, W) in [-1, 1]."""
        rows = np.stack([self._chunks[i // _CHUNK][i % _CHUNK][t] for i, t in zip(index, moments, strict=True)])
        return torch.from_numpy(rows).float() / 127.5 - 1


def draw(rng: torch.Generator, count: int, below: int) -> list[int]:
    """`count` numbers in [0, below)."""
    return torch.randint(below, (count,), generator=rng).tolist()
