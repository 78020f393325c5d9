"""The video codec: a picture autoencoder applied frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcm.models.folders import component, load_network


class VideoCodec(nn.Module):
    """diffusers' AutoencoderKL, frozen, over the frames of a video.

    Latents are scaled for the denoiser: z = (encoded - shift_factor) * scaling_factor, both from the
    autoencoder's configuration. slice_frames: how many frames are encoded or decoded at once, to bound the
    memory. factor: pixels a latent; channels: C.
    """

    def __init__(self, vae: Any, slice_frames: int = 8) -> None:
        super().__init__()
        if slice_frames < 1:
            raise ValueError(f"slice_frames {slice_frames}: expected at least 1")
        self.vae = vae.eval().requires_grad_(False)
        self.slice_frames = slice_frames
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = int(vae.config.latent_channels)
        self.scaling = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Self:
        """From the vae/ of a pipeline folder."""
        from diffusers import AutoencoderKL

        return cls(load_network(AutoencoderKL, component(folder, "vae"), dtype))

    @torch.no_grad()
    def encode_frames(self, frames: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1] -> latents (N, C, h, w): the posterior's mean, or a sample of it
        with rng."""
        found = []
        for part in frames.split(self.slice_frames):
            posterior = self.vae.encode(part.to(self.vae.dtype)).latent_dist
            latents = posterior.mean
            if rng is not None:
                noise = torch.randn(latents.shape, generator=rng, device=rng.device, dtype=torch.float32)
                latents = latents + posterior.std * noise.to(latents)
            found.append((latents.to(frames.dtype) - self.shift) * self.scaling)
        return torch.cat(found)

    def encode(self, video: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] -> latents (B, C, T, h, w). No gradients."""
        return _as_video(self.encode_frames(_as_frames(video), rng), video.shape[0])

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, T, h, w) -> video (B, 3, T, H, W), about [-1, 1] but not clipped. Differentiable in
        z."""
        return _as_video(self._decode(_as_frames(z)), z.shape[0])

    def decode_frames(self, z: Tensor, index: Tensor) -> Tensor:
        """Only the frames `index` (B, K) long, of each clip of z (B, C, T, h, w) -> (B*K, 3, H, W), clip by
        clip.

        Differentiable in z; not clipped.
        """
        clips = torch.arange(z.shape[0], device=z.device)[:, None]
        return self._decode(z.transpose(1, 2)[clips, index.to(z.device)].flatten(0, 1))

    def _decode(self, frames: Tensor) -> Tensor:
        parts = (frames / self.scaling + self.shift).split(self.slice_frames)
        return torch.cat([self.vae.decode(part.to(self.vae.dtype)).sample.to(frames.dtype) for part in parts])

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, but the frozen autoencoder stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        return self


def _as_frames(video: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B*T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def _as_video(frames: Tensor, batch: int) -> Tensor:
    """(B*T, C, H, W) -> (B, C, T, H, W)."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)
