"""Motion representations phi: what the motion-consistency loss sees of a video's latents (MCM, arXiv
2406.06890, 3.2).

Each maps latents z (B, C, T, H, W) to a tensor whose distance to the target's is taken, and is found by its
`name`. A new one is a new class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcm.errors import UserError, one_of


class MotionRepresentation(nn.Module, ABC):
    """phi: latents (B, C, T, H, W) -> a tensor of the class's own shape. `channels` is C."""

    name: ClassVar[str]

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """phi(z) of latents z (B, C, T, H, W)."""


class Raw(MotionRepresentation):
    """The latents themselves: with it motion distillation is plain latent consistency distillation."""

    name = "raw"

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, C, T, H, W)"""
        return z


class FrameDifference(MotionRepresentation):
    """Each frame minus the one before: blind to whatever all frames of a clip share."""

    name = "difference"

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, C, T - 1, H, W)"""
        before, after = _neighbours(z, self.name)
        return after - before


class _Frequency(MotionRepresentation):
    """A 3-D Butterworth filter over (T, H, W), order n = 4, stop frequency 0.25 of Nyquist, applied by FFT.

    The low-pass gain is 1 / (1 + (d / stop)^(2n)), d the distance from the zero frequency with each axis
    scaled so that Nyquist is 1 (the filter of FreeInit, arXiv 2312.07537). The axes wrap around.
    """

    order: ClassVar[int] = 4
    stop: ClassVar[float] = 0.25

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        # The gain of the last shape seen; a training run has one shape, so it is computed once.
        self.register_buffer("_gain", None, persistent=False)
        self._size: tuple[int, int, int] | None = None

    def low_pass(self, z: Tensor) -> Tensor:
        """The slow, smooth part of z (B, C, T, H, W), same shape and dtype."""
        wide = z if z.dtype in (torch.float32, torch.float64) else z.float()
        size = (z.shape[-3], z.shape[-2], z.shape[-1])
        if self._size != size or self._gain is None or self._gain.device != z.device:
            self._gain, self._size = self.gain(size, z.device), size
        spectrum = torch.fft.rfftn(wide, dim=(-3, -2, -1)) * self._gain.to(wide.dtype)
        return torch.fft.irfftn(spectrum, s=size, dim=(-3, -2, -1)).to(z.dtype)

    def gain(self, size: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
        """The low-pass gain in (0, 1] at every frequency of `rfftn`, (T, H, W // 2 + 1) float32."""
        frames, height, width = size
        t = 2 * torch.fft.fftfreq(frames, device=device)
        h = 2 * torch.fft.fftfreq(height, device=device)
        w = 2 * torch.fft.rfftfreq(width, device=device)
        square = t[:, None, None] ** 2 + h[None, :, None] ** 2 + w[None, None, :] ** 2
        return 1 / (1 + (square / self.stop**2) ** self.order)


class LowFrequency(_Frequency):
    """What is slow in time and smooth in space."""

    name = "low"

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, C, T, H, W)"""
        return self.low_pass(z)


class HighFrequency(_Frequency):
    """The rest of the low frequencies: low + high is the latents. Blind to a constant."""

    name = "high"

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, C, T, H, W)"""
        return z - self.low_pass(z)


class LocalCorrelation(MotionRepresentation):
    """Inner products over the channels of each place with the places around it in the next frame.

    The window reaches `radius` = 7 cells to each side; outside of the frame the products are 0, also where
    the window is wider than the frame.
    """

    name = "local-correlation"
    radius: ClassVar[int] = 7

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, T - 1, K, K, H, W), K = 2 radius + 1; at [b, t, i, j, y, x] frame t's (y, x) times
        frame t + 1's (y + i - radius, x + j - radius)
        """
        before, after = _neighbours(z, self.name)
        reach, height = 2 * self.radius + 1, z.shape[-2]
        # One row of the window at a time, on views: autograd keeps no copy of the K * K shifted frames.
        rows = F.pad(after, (self.radius,) * 4).unfold(-1, reach, 1)  # (B, C, T - 1, H + 2 radius, W, K)
        products = [(before[..., None] * rows[..., i : i + height, :, :]).sum(1) for i in range(reach)]
        return torch.stack(products, dim=2).movedim(-1, 3)


class GlobalCorrelation(MotionRepresentation):
    """Inner products over the channels of all places of a frame with all places of the next.

    Its size grows with (H W)^2: 64 x 64 latents need 67 MB of float32 a pair of frames.
    """

    name = "global-correlation"

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, T - 1, H * W, H * W); [b, t, i, j] pairs place i of frame t with place j of frame t + 1."""
        before, after = _neighbours(z, self.name)
        return torch.einsum("bcti,bctj->btij", before.flatten(-2), after.flatten(-2))


class ScaledGlobalCorrelation(GlobalCorrelation):
    """The global correlation over sqrt(C), as in RAFT (arXiv 2003.12039) and in attention.

    So latents of unit variance give products of unit variance whatever C, and a distance's threshold means
    the same for every codec. No softmax: over H * W places it would leave numbers too small for the
    pseudo-Huber distance.
    """

    name = "scaled-correlation"

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, T - 1, H * W, H * W)"""
        return super().forward(z) / z.shape[1] ** 0.5


class _Learnable(MotionRepresentation):
    """z + net(frame by frame), the last layer of `net` zero at first, so that phi starts as the identity.

    It has no temporal operation. The target sees an averaged copy (the method's part, not this class's).
    """

    net: nn.Sequential

    def forward(self, z: Tensor) -> Tensor:
        """-> (B, C, T, H, W)"""
        frames = z.transpose(1, 2).flatten(0, 1)
        return z + self.net(frames).unflatten(0, (z.shape[0], z.shape[2])).transpose(1, 2)


class LearnableLight(_Learnable):
    """The paper's choice: a residual MLP at every place of every frame, C -> 64 -> C."""

    name = "learnable"

    def __init__(self, channels: int, hidden: int = 64) -> None:
        super().__init__(channels)
        self.net = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.SiLU(), _zero(nn.Conv2d(hidden, channels, 1))
        )


class LearnableHeavy(_Learnable):
    """Five 3 x 3 convolutions in every frame, C -> 64 -> 64 -> 64 -> 64 -> C, around them a residual path."""

    name = "learnable-heavy"

    def __init__(self, channels: int, hidden: int = 64) -> None:
        super().__init__(channels)
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 3, padding=1), nn.SiLU()]
        for _ in range(3):
            layers += [nn.Conv2d(hidden, hidden, 3, padding=1), nn.SiLU()]
        self.net = nn.Sequential(*layers, _zero(nn.Conv2d(hidden, channels, 3, padding=1)))


def motion_representation(name: str, channels: int) -> MotionRepresentation:
    """The representation called `name` for latents of C = `channels`. UserError on an unknown name."""
    found = {kind.name: kind for kind in _named(MotionRepresentation)}
    if name not in found:
        raise one_of("motion representation", name, found)
    return found[name](channels)


def _named(base: type[MotionRepresentation]) -> Iterator[type[MotionRepresentation]]:
    for kind in base.__subclasses__():
        if "name" in vars(kind):
            yield kind
        yield from _named(kind)


def _neighbours(z: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Frames 0..T-2 and 1..T-1 of z (B, C, T, H, W)."""
    if z.shape[2] < 2:
        raise UserError(f"motion representation {name!r} needs clips of 2 frames or more, got {z.shape[2]}")
    return z[:, :, :-1], z[:, :, 1:]


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
