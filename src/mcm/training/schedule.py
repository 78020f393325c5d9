"""How long a run is and how fast it learns: the trainer's part of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Schedule:
    """Learning rate of an update: linear warm-up, then constant or half a cosine down to a hundredth.

    begin: the first update of the player that it is for; updates: how many are its own; anew: updates between them at
    which all of it starts anew, as a stage does in a progressive method.
    """

    rate: float
    warmup: int
    updates: int
    shape: str = "cosine"
    begin: int = 0
    anew: tuple[int, ...] = ()

    def __call__(self, update: int) -> float:
        begins = [self.begin, *self.anew]
        stage = max(sum(begin <= update for begin in begins) - 1, 0)
        updates = [*self.anew, self.begin + self.updates][stage] - begins[stage]
        update = max(0, update - begins[stage])
        warm = min(1.0, (update + 1) / (self.warmup + 1))
        if self.shape == "constant":
            return self.rate * warm
        progress = min(1.0, max(0.0, (update - self.warmup) / max(1, updates - self.warmup)))
        return self.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Plan:
    """How long and how.

    updates: optimizer steps of the student; accumulation: micro-batches that each rank sums for one; save_every, keep:
    updates between checkpoints and how many are kept; log_every: updates between lines of the log; seed: of
    everything; precision: "fp32", "bf16" or "fp16", of forward passes on `device`.
    """

    updates: int
    accumulation: int = 1
    clip: float = 10.0
    seed: int = 0
    save_every: int = 100
    keep: int = 2
    log_every: int = 10
    precision: str = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
