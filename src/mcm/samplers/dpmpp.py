"""DPM-Solver++(2M) (arXiv 2211.01095): the teacher's better, second-order sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcm.diffusion.paths import Denoised, NoisePath, RectifiedFlow
from mcm.diffusion.solvers import dpmpp_2m_step
from mcm.errors import one_of
from mcm.samplers.base import Rng, Sampler, check_steps, ending, trailing

SPACINGS = ("linspace", "leading", "trailing")


@dataclass(frozen=True)
class DPMpp(Sampler):
    """diffusers' DPMSolverMultistepScheduler: dpmsolver++, order 2, midpoint, ending at clean latents.

    The first and the last step are of first order. spacing: "linspace" (evenly from the last time, 0 left
    out), "leading" (every T // (steps + 1)-th time plus steps_offset) or "trailing" (counted back from the
    last time). On a rectified flow the times are diffusers' use_flow_sigmas, whatever the spacing.
    """

    spacing: str = "linspace"
    steps_offset: int = 0

    name = "dpm++"
    diffusers_class = "DPMSolverMultistepScheduler"
    diffusers_keys: ClassVar[Mapping[str, str]] = {
        "spacing": "timestep_spacing",
        "steps_offset": "steps_offset",
    }
    diffusers_needs: ClassVar[Mapping[str, Any]] = {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "thresholding": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
    }

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise one_of("spacing of sampler 'dpm++'", self.spacing, SPACINGS)

    def times(self, path: NoisePath, steps: int) -> Tensor:
        count = path.num_timesteps
        check_steps(steps, count - 1, self.name)
        if isinstance(path, RectifiedFlow):
            even = torch.linspace(0, 1 - 1 / count, steps + 1, dtype=torch.float64).flip(0)[:-1]
            return ending((path.shifted(even) * count).float(), path.clean_time)
        if self.spacing == "linspace":
            times = torch.linspace(0, count - 1, steps + 1, dtype=torch.float64).round().long().flip(0)[:-1]
        elif self.spacing == "leading":
            times = torch.arange(1, steps + 1).flip(0) * (count // (steps + 1)) + self.steps_offset
            times = times.clamp(max=count - 1)
        else:
            times = trailing(count, steps)
        return ending(times, path.clean_time)

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
        z_s = dpmpp_2m_step(path, denoised, t, s, memory.get("previous"), z)
        memory["previous"] = (denoised.x0, t)
        return z_s
