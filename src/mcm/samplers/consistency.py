"""Multistep consistency sampling (arXiv 2303.01469, algorithm 1), on LCM's times (arXiv 2310.04378)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mcm.diffusion.consistency import ConsistencyFunction
from mcm.diffusion.paths import Denoised, NoisePath
from mcm.samplers.base import Rng, Sampler, ending, noise_like, of_grid


@dataclass(frozen=True)
class Consistency(Sampler):
    """diffusers' LCMScheduler: jump to the clean end with f, add fresh noise of the next time, jump again.

    timestep_scaling, sigma_data: of the consistency function, as it was trained. original_steps: the solver
    grid of the training, from which the times are taken (`of_grid`). Works on any noise path. The last step
    adds no noise and draws none.
    """

    timestep_scaling: float = 4.0
    original_steps: int = 50
    sigma_data: float = 0.5

    name = "consistency"
    diffusers_class = "LCMScheduler"
    diffusers_keys: ClassVar[Mapping[str, str]] = {
        "timestep_scaling": "timestep_scaling",
        "original_steps": "original_inference_steps",
    }
    diffusers_needs: ClassVar[Mapping[str, Any]] = {"clip_sample": False, "thresholding": False}

    def times(self, path: NoisePath, steps: int) -> Tensor:
        return ending(of_grid(path, self.original_steps, steps, self.name), path.clean_time)

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
        x0 = ConsistencyFunction(self.sigma_data, self.timestep_scaling)(z, t, denoised.x0)
        if not bool(path.sigma(s).any()):
            return x0
        return path.diffuse(x0, noise_like(x0, rng), s)
