"""The order in which samples are drawn: shuffled, exactly resumable, split over ranks, and nothing is ever
left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcm.errors import UserError


@dataclass(frozen=True)
class Draw:
    """One sample of the stream: its index in the source, and how often the source had been gone through
    before.
    """

    index: int
    epoch: int


def sample_rng(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator of its own for each (seed, counters), for instance (seed, epoch, index).

    What a sample draws (where its clip starts, its crop) then depends neither on the batch, nor on the rank,
    nor on how often training was interrupted.
    """
    words = ":".join(str(int(word)) for word in (seed, *counters))
    digest = hashlib.sha256(words.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Stream:
    """An endless stream of indices into a source of `length` samples, `batch` at a time for this rank.

    Each epoch is a permutation of its own, made from (seed, epoch); the epochs are laid end to end and a
    batch may straddle two of them, so every index comes exactly once an epoch whatever the batch size. Of
    each `batch * world` indices in a row the ranks take `batch` each. The only state is the count of samples
    consumed by all ranks together, so a resumed stream goes on exactly where it was, also with another batch
    size or number of ranks.
    """

    def __init__(self, length: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if length < 1 or batch < 1 or world < 1 or not 0 <= rank < world:
            raise ValueError(
                f"length {length}, batch {batch}, rank {rank}, world {world}: "
                "length, batch and world must be positive and rank below world"
            )
        self.length, self.batch, self.seed, self.rank, self.world = length, batch, seed, rank, world
        self.consumed = 0
        self._orders: dict[int, Tensor] = {}

    @property
    def epoch(self) -> int:
        """The epoch of the next sample."""
        return self.consumed // self.length

    def next_draws(self) -> list[Draw]:
        """This rank's next `batch` samples; moves the whole stream on by `batch * world`."""
        first = self.consumed + self.rank * self.batch
        draws = [self._draw(position) for position in range(first, first + self.batch)]
        self.consumed += self.batch * self.world
        for epoch in [e for e in self._orders if e < self.epoch]:
            del self._orders[epoch]
        return draws

    def next_batch(self) -> list[int]:
        """The indices of `next_draws`."""
        return [draw.index for draw in self.next_draws()]

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed, "length": self.length, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises `UserError` for that of another source or seed."""
        for what in ("length", "seed"):
            if state[what] != getattr(self, what):
                raise UserError(
                    f"cannot resume: the first run drew with {what} {state[what]} from its source, this "
                    f"one has {what} {getattr(self, what)}; restore source and settings, or start a new run"
                )
        self.consumed = int(state["consumed"])

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.length)
        if epoch not in self._orders:
            self._orders[epoch] = torch.randperm(self.length, generator=sample_rng(self.seed, epoch))
        return Draw(int(self._orders[epoch][place]), epoch)
