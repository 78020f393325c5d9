"""DDPM's ancestral sampler (arXiv 2006.11239, algorithm 2): DDIM with fresh noise in every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcm.diffusion.paths import Denoised, NoisePath, expand
from mcm.samplers.base import Rng, Sampler, check_steps, ending, noise_like, trailing


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Steps from t to s by drawing from q(z_s | z_t, x0); trailing times."""

    name = "ancestral"
    diffusers_class = "DDPMScheduler"

    def times(self, path: NoisePath, steps: int) -> Tensor:
        check_steps(steps, path.num_timesteps, self.name)
        return ending(trailing(path.num_timesteps, steps), path.clean_time)

    def step(
        self, path: NoisePath, denoised: Denoised, z: Tensor, t: Tensor, s: Tensor, memory: dict[str, Any], rng: Rng
    ) -> Tensor:
        sigma_s, sigma_t = path.sigma(s), path.sigma(t)
        if not bool(sigma_s.any()):  # the clean end
            return denoised.x0
        forward = sigma_t**2 - (path.alpha(t) / path.alpha(s) * sigma_s) ** 2  # variance of q(z_t | z_s)
        fresh = forward.clamp(min=0).sqrt() * sigma_s / sigma_t  # deviation of q(z_s | z_t, x0)
        kept = (sigma_s**2 - fresh**2).clamp(min=0).sqrt()
        mean = expand(path.alpha(s), z) * denoised.x0 + expand(kept, z) * denoised.eps
        return mean + expand(fresh, z) * noise_like(z, rng)
