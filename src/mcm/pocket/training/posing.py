"""Training of the pose network on rendered frames only: those of the judge's clips, which no teacher has seen."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mcm.pocket.pose import PoseNetwork, cells, centres
from mcm.pocket.training.corpus import Domains
from mcm.pocket.training.judging import COUNTS, varied
from mcm.pocket.training.loop import Losses, train

SPREAD = 0.8  # of a point's place in the heat map, in cells


def places(points: Tensor, count: int) -> Tensor:
    """Where points (N, 18, 2) are among `count` x `count` cells: shares (N, 18, count, count) that sum to one."""
    across, down = (
        torch.softmax(-((points[..., i, None] - cells(count)) * count / SPREAD).square() / 2, dim=-1) for i in (0, 1)
    )
    return down[..., :, None] * across[..., None, :]


def fit(work: Path, steps: int = 3000, batch: int = 48) -> PoseNetwork:
    """Train on the split "judge", one frame of a clip at a time; half of them broadcast, the rest of the styles."""
    model = PoseNetwork()
    domains = Domains(work, "judge", COUNTS)

    def losses(step: int, rng: torch.Generator) -> Losses:
        frames, points = domains.draw(rng, batch).frames(rng)
        heat = model.heat(varied(frames[:, :, None], rng)[:, :, 0])
        wanted = places(points, heat.shape[-1]).flatten(-2)
        return {
            "heat": 0.2 * F.cross_entropy(heat.flatten(0, 1).flatten(1), wanted.flatten(0, 1)),
            "pixels": 64 * 0.2 * (centres(heat) - points).abs().mean(),
        }

    model.load_state_dict(train("pose", model, losses, steps=steps, learning_rate=2e-3, work=work))
    return model.eval()
