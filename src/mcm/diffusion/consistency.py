"""The consistency function: from any point of a trajectory to its clean end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mcm.diffusion.paths import expand
from mcm.errors import UserError


@dataclass(frozen=True)
class ConsistencyFunction:
    """f(z, t) = c_skip(t) z + c_out(t) x0, so that f(z, 0) = z (arXiv 2303.01469, eq. 5; LCM's scaling of the
    time).

    With k the timestep scaling, d = sigma_data and t in the network's units (0..999 or 0..1000): c_skip = d^2
    / ((k t)^2 + d^2), c_out = k t / sqrt((k t)^2 + d^2). A t below 0 (the clean end) counts as 0.
    """

    sigma_data: float = 0.5
    timestep_scaling: float = 4.0

    def __post_init__(self) -> None:
        if self.sigma_data <= 0 or self.timestep_scaling <= 0:
            raise UserError(
                "consistency function: expected sigma_data > 0 and timestep_scaling > 0, "
                f"got {self.sigma_data} and {self.timestep_scaling}"
            )

    def c_skip(self, t: Tensor) -> Tensor:
        """The share of z at t (B,) -> (B,)."""
        return self.sigma_data**2 / (self._scaled(t) ** 2 + self.sigma_data**2)

    def c_out(self, t: Tensor) -> Tensor:
        """The share of the denoiser's x0 at t (B,) -> (B,)."""
        scaled = self._scaled(t)
        return scaled / (scaled**2 + self.sigma_data**2).sqrt()

    def __call__(self, z: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """f of z (B, ...) at t (B,), given the denoiser's x0 (B, ...) there. -> (B, ...)"""
        return expand(self.c_skip(t), z) * z + expand(self.c_out(t), z) * x0

    def _scaled(self, t: Tensor) -> Tensor:
        t = t if t.is_floating_point() else t.float()
        return self.timestep_scaling * t.clamp(min=0)
