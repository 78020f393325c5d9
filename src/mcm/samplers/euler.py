"""Euler's method: the plain sampler of rectified flows, and of students trained on trailing times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcm.diffusion.paths import Denoised, NoisePath, RectifiedFlow
from mcm.diffusion.solvers import euler_step
from mcm.samplers.base import Rng, Sampler, check_steps, ending, trailing


@dataclass(frozen=True)
class Euler(Sampler):
    """diffusers' FlowMatchEulerDiscreteScheduler, with the shift of the path.

    On a variance-preserving path: its EulerDiscreteScheduler with trailing spacing, written in our scale of
    z.
    """

    name = "euler"
    diffusers_class = "FlowMatchEulerDiscreteScheduler"
    diffusers_needs: ClassVar[Mapping[str, Any]] = {
        "use_dynamic_shifting": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "invert_sigmas": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
    }

    def times(self, path: NoisePath, steps: int) -> Tensor:
        count = path.num_timesteps
        check_steps(steps, count, self.name)
        if not isinstance(path, RectifiedFlow):
            return ending(trailing(count, steps), path.clean_time)
        # diffusers shifts the smallest level twice: once to find it, once with all the others.
        smallest = float(path.shifted(torch.tensor(1 / count, dtype=torch.float64)))
        even = torch.linspace(1, smallest, steps, dtype=torch.float64)
        return ending((path.shifted(even) * count).float(), path.clean_time)

    def step(
        self,
        path: NoisePath,
        denoised: Denoised,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        memory: dict[str, Any],
        rng: Rng,
    ) -> Tensor:
        return euler_step(path, denoised, t, s, z)
