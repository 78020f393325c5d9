"""Strategic stochastic sampling of consistency students (arXiv 2402.19159): a step keeps some of its noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mcm.diffusion.paths import Denoised, NoisePath, VariancePreserving, expand
from mcm.errors import UserError
from mcm.samplers.base import Rng, Sampler, ending, noise_like, of_grid


@dataclass(frozen=True)
class TCD(Sampler):
    """diffusers' TCDScheduler: a DDIM step to (1 - eta) s, then fresh noise up to the next time s.

    eta: the paper's gamma, in [0, 1]: 1 makes all noise anew, as "consistency" does, 0 none. It samples students that
    were made for "consistency", on the same times (original_steps); the boundary condition's share of z, nothing at
    k t in the hundreds, is left out, and a run ends at time 0, both as in diffusers.
    """

    eta: float = 0.3
    original_steps: int = 50

    name = "tcd"
    stands_in_for = "consistency"
    diffusers_class = "TCDScheduler"
    diffusers_keys: ClassVar[Mapping[str, str]] = {"original_steps": "original_inference_steps"}
    diffusers_needs: ClassVar[Mapping[str, Any]] = {"clip_sample": False, "thresholding": False}

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"sampler 'tcd': expected eta from 0 (no fresh noise) to 1 (all of it), got {self.eta:g}")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        if not isinstance(path, VariancePreserving):
            raise UserError("sampler 'tcd' is for variance-preserving teachers; on a rectified flow use 'consistency'")
        return ending(of_grid(path, self.original_steps, steps, self.name), 0)

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
        between = ((1 - self.eta) * s).long()
        kept = path.diffuse(denoised.x0, denoised.eps, between)
        if self.eta == 0 or not bool(s.any()):
            return kept
        share = path.alpha(s) / path.alpha(between)
        return expand(share, z) * kept + expand((1 - share**2).sqrt(), z) * noise_like(z, rng)
