"""Rendered clips kept on disk as bytes, so that every network's training reads them instead of rendering again."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcm.pocket import world
from mcm.pocket.world import DOMAINS, Spec

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


# Clips of each domain that the networks which see all of them are trained on.
COUNTS = {"broadcast": 3000, "studio": 1000, "toon": 1000, "relief": 1000}


class Drawn(NamedTuple):
    """Clips drawn from several corpora: which, their specs, joints (N, T, 18, 2) and numbers of their domain (N,)."""

    chosen: list[tuple[Corpus, list[int]]]
    specs: list[Spec]
    joints: Tensor
    domain: Tensor

    def clips(self) -> Tensor:
        """(N, 3, T, H, W) in [-1, 1]."""
        return torch.cat([corpus.clips(index) for corpus, index in self.chosen])

    def frames(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One frame of each clip, (N, 3, H, W) in [-1, 1], and the joints in it, (N, 18, 2)."""
        moments = draw(rng, len(self.specs), self.joints.shape[1])
        left = iter(moments)
        pictures = [corpus.frames(index, [next(left) for _ in index]) for corpus, index in self.chosen]
        return torch.cat(pictures), self.joints[torch.arange(len(moments)), moments]


class Domains:
    """Clips of every domain of a split."""

    def __init__(self, work: Path, split: str = "train", counts: dict[str, int] = COUNTS) -> None:
        self._corpora = [Corpus(work, split, domain, counts[domain]) for domain in DOMAINS]
        self._joints = [world.stage(corpus.specs, 8) for corpus in self._corpora]

    def draw(self, rng: torch.Generator, count: int, broadcast: float = 0.5) -> Drawn:
        """`count` clips: the share `broadcast` of that domain, the rest of the picture styles in equal parts."""
        first = round(count * broadcast)
        rest, over = divmod(count - first, len(DOMAINS) - 1)
        shares = [first, *(rest + (i < over) for i in range(len(DOMAINS) - 1))]
        index = [draw(rng, n, len(corpus)) for n, corpus in zip(shares, self._corpora, strict=True)]
        return Drawn(
            list(zip(self._corpora, index, strict=True)),
            [corpus.specs[i] for corpus, chosen in zip(self._corpora, index, strict=True) for i in chosen],
            torch.cat([joints[chosen] for joints, chosen in zip(self._joints, index, strict=True)]),
            torch.arange(len(DOMAINS)).repeat_interleave(torch.tensor(shares)),
        )


def draw(rng: torch.Generator, count: int, below: int) -> list[int]:
    """`count` numbers in [0, below)."""
    return torch.randint(below, (count,), generator=rng).tolist()
