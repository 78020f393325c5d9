"""DDIM (arXiv 2010.02502), deterministic: the teacher's plain first-order sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcm.diffusion.paths import Denoised, NoisePath, VariancePreserving
from mcm.diffusion.solvers import ddim_step
from mcm.errors import UserError, one_of
from mcm.samplers.base import Rng, Sampler, check_steps, ending, trailing

SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class DDIM(Sampler):
    """diffusers' DDIMScheduler with eta 0; the defaults are what Stable Diffusion's pipelines use.

    spacing: "leading" (every T // steps-th time from 0, plus steps_offset: it never starts at pure noise),
    "trailing" (counted back from the last time) or "linspace" (evenly from the last time to 0). steps_offset:
    for "leading". set_alpha_to_one: the run ends at clean latents; otherwise at time 0, as Stable Diffusion's
    configurations say. Each step goes to the next time of the schedule; diffusers goes T // steps down
    instead, which is the same wherever steps divides T and spacing is not "linspace".
    """

    spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False

    name = "ddim"
    diffusers_class = "DDIMScheduler"
    diffusers_keys: ClassVar[Mapping[str, str]] = {
        "spacing": "timestep_spacing",
        "steps_offset": "steps_offset",
        "set_alpha_to_one": "set_alpha_to_one",
    }
    diffusers_needs: ClassVar[Mapping[str, Any]] = {"clip_sample": False, "thresholding": False}

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise one_of("spacing of sampler 'ddim'", self.spacing, SPACINGS)

    def times(self, path: NoisePath, steps: int) -> Tensor:
        if not isinstance(path, VariancePreserving):
            raise UserError(
                "sampler 'ddim' is for variance-preserving teachers; for a rectified flow use 'euler'"
            )
        count = path.num_timesteps
        check_steps(steps, count, self.name)
        if self.spacing == "leading":
            times = torch.arange(steps).flip(0) * (count // steps) + self.steps_offset
            times = times.clamp(max=count - 1)
        elif self.spacing == "trailing":
            times = trailing(count, steps)
        else:
            times = torch.linspace(0, count - 1, steps, dtype=torch.float64).round().long().flip(0)
        return ending(times, path.clean_time if self.set_alpha_to_one else 0)

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
        return ddim_step(path, denoised, t, s)
