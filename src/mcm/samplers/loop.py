"""The sampling loop: from noise to clean latents with any sampler and any denoiser."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from mcm.diffusion.paths import Denoised, NoisePath
from mcm.samplers.base import Rng, Sampler


class Step(NamedTuple):
    """What the sampler has after a step: steps done of `steps`, and the denoiser's word there, x0 (B, ...)."""

    done: int
    steps: int
    x0: Tensor


def sample(
    denoise: Callable[[Tensor, Tensor], Denoised],
    path: NoisePath,
    sampler: Sampler,
    noise: Tensor,
    steps: int,
    rng: Rng,
    watch: Callable[[Step], None] | None = None,
) -> Tensor:
    """Clean latents (B, ...) from standard normal noise (B, ...).

    denoise: (z (B, ...), t (B,)) -> Denoised, guidance included. rng: for samplers that add noise, one
    generator or one a clip (see `noise_like`). watch: called after each step; what it raises ends the run. The
    noise is taken as it is, of unit variance, whatever the first time: so do diffusers' pipelines, and
    latents of unit variance have it at every time. Gradients are the caller's business: wrap the call in
    `torch.no_grad()` to sample.
    """
    z = noise
    memory: dict[str, Any] = {}
    times = sampler.times(path, steps).to(noise.device)
    for done, (t, s) in enumerate(pairwise(times), start=1):
        t_batch, s_batch = t.expand(len(z)), s.expand(len(z))
        denoised = denoise(z, t_batch)
        z = sampler.step(path, denoised, z, t_batch, s_batch, memory, rng)
        if watch is not None:
            watch(Step(done, steps, denoised.x0))
    return z
