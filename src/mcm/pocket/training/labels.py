"""The world's questions as targets of a classifier, and the losses of asking them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mcm.pocket.world import QUESTIONS, Spec


def answers(specs: list[Spec]) -> dict[str, Tensor]:
    """Class numbers (B,) for every question."""
    return {q: torch.tensor([s.labels[q] for s in specs]) for q in QUESTIONS}


def question_losses(logits: Tensor, truth: dict[str, Tensor], sizes: dict[str, int]) -> dict[str, Tensor]:
    """Cross entropy of every question; `logits` (B, sum of sizes) holds their logits side by side."""
    parts = dict(zip(sizes, logits.split(list(sizes.values()), dim=-1), strict=True))
    return {q: F.cross_entropy(parts[q], truth[q]) for q in truth}
