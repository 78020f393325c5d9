"""The solver grid: the N times between which a consistency distillation takes its teacher's steps."""

from __future__ import annotations

import torch
from torch import Tensor

from mcm.diffusion.paths import NoisePath, RectifiedFlow
from mcm.errors import UserError


class SolverGrid:
    """N evenly spaced times of a path, ascending, the noisiest last (LCM, arXiv 2310.04378).

    `timesteps` (N,): for a variance-preserving path of 1000 times and N = 50 the whole numbers 19, 39, ...,
    999; for a rectified flow t_max * shifted(i / N), i = 1..N, as float32. The neighbour below the first time
    is 0.
    """

    def __init__(self, path: NoisePath, steps: int = 50) -> None:
        """Raises UserError unless 1 <= steps <= the path's num_timesteps."""
        if not 1 <= steps <= path.num_timesteps:
            raise UserError(f"solver grid: expected 1 to {path.num_timesteps} steps, got {steps}")
        self.path = path
        self.steps = steps
        if isinstance(path, RectifiedFlow):
            even = torch.arange(1, steps + 1, dtype=torch.float64) / steps
            self.timesteps = (path.shifted(even) * path.t_max).float()
        else:
            self.timesteps = torch.arange(1, steps + 1) * (path.num_timesteps // steps) - 1

    def draw(self, batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Neighbouring times (t, s), t > s, uniform over the grid; each (batch,), on the device of `rng`."""
        index = torch.randint(self.steps, (batch,), generator=rng, device=rng.device)
        t = self.timesteps.to(rng.device)[index]
        return t, self.neighbour(t)

    def neighbour(self, t: Tensor) -> Tensor:
        """The largest grid time below t (B,), 0 where there is none. -> (B,), grid's dtype, t's device"""
        below = torch.cat([torch.zeros_like(self.timesteps[:1]), self.timesteps]).to(t.device)
        return below[torch.searchsorted(below[1:], t.contiguous())]
