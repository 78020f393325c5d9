"""A motion representation: the change of the change from frame to frame."""

from __future__ import annotations

from torch import Tensor

from mcm.errors import UserError
from mcm.motion import MotionRepresentation


class Acceleration(MotionRepresentation):
    """Second differences over time: blind to what all frames share, and to steady motion of the latents."""

    name = "acceleration"

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, C, T - 2, H, W)"""
        if z.shape[2] < 3:
            raise UserError(f"motion representation {self.name!r} needs clips of 3 frames or more, got {z.shape[2]}")
        return z[:, :, 2:] - 2 * z[:, :, 1:-1] + z[:, :, :-2]
