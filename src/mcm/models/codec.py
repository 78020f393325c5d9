"""The video codecs: a picture autoencoder applied frame by frame, and autoencoders that compress time as well."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcm.models.folders import component, load_network


class VideoCodec(nn.Module):
    """diffusers' AutoencoderKL, frozen, over the frames of a video.

    Latents are scaled for the denoiser: z = (encoded - shift_factor) * scaling_factor, both from the
    autoencoder's configuration. slice_frames: how many frames are encoded or decoded at once, to bound the
    memory. factor: pixels a latent; channels: C. time_factor: frames a latent frame, after the first frame, which
    has one of its own; frame_step: a video must have a multiple of it and one frame more (1: any number).
    """

    time_factor: int = 1
    frame_step: int = 1
    scaling: float | Tensor
    shift: float | Tensor

    def __init__(self, vae: Any, slice_frames: int = 8) -> None:
        super().__init__()
        if slice_frames < 1:
            raise ValueError(f"slice_frames {slice_frames}: expected at least 1")
        self.vae = vae.eval().requires_grad_(False)
        self.slice_frames = slice_frames
        self._measure(vae.config)

    def _measure(self, config: Any) -> None:
        """Sets factor, channels, scaling and shift (and the times) from the autoencoder's configuration."""
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.channels = int(config.latent_channels)
        self.scaling = float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Self:
        """From the vae/ of a pipeline folder."""
        from diffusers import AutoencoderKL

        return cls(load_network(AutoencoderKL, component(folder, "vae"), dtype))

    def latent_frames(self, frames: int) -> int:
        """T of the latents of a video of `frames` frames."""
        return (frames - 1) // self.time_factor + 1

    def pixel_frames(self, frames: int) -> int:
        """T of the video that latents of `frames` frames decode to."""
        return (frames - 1) * self.time_factor + 1

    def recomputable(self) -> list[nn.Module]:
        """The networks that gradient checkpointing may run again in a backward pass."""
        return [self.vae.decoder]

    @torch.no_grad()
    def encode_frames(self, frames: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1] -> latents (N, C, h, w): the posterior's mean, or a sample of it
        with rng."""
        found = []
        for part in frames.split(self.slice_frames):
            posterior = self.vae.encode(part.to(self.vae.dtype)).latent_dist
            found.append(self._drawn(posterior, rng).to(frames.dtype))
        return torch.cat(found)

    def _drawn(self, posterior: Any, rng: torch.Generator | None) -> Tensor:
        """The posterior's mean, or a sample of it with rng, scaled for the denoiser."""
        latents = posterior.mean
        if rng is not None:
            noise = torch.randn(latents.shape, generator=rng, device=rng.device, dtype=torch.float32)
            latents = latents + posterior.std * noise.to(latents)
        return (latents - self.shift) * self.scaling

    def encode(self, video: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] -> latents (B, C, T, h, w). No gradients."""
        return _as_video(self.encode_frames(_as_frames(video), rng), video.shape[0])

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, T, h, w) -> video (B, 3, T, H, W), about [-1, 1] but not clipped. Differentiable in
        z."""
        return _as_video(self._decode(_as_frames(z)), z.shape[0])

    def decode_frames(self, z: Tensor, index: Tensor) -> Tensor:
        """Only some frames of each clip of z (B, C, T, h, w) -> (B*K, 3, H, W), clip by clip.

        index: (B, K) long, numbers of the video's frames (not of latent frames), below `pixel_frames(T)`.
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


class CausalCodec(VideoCodec, ABC):
    """An autoencoder over space and time, in which a frame depends on itself and on earlier ones alone.

    Its decoder takes a clip in parts, one after the other, with a cache of what the layers saw at the end of the last
    part. Clips are coded one at a time, to bound the memory.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__(vae, slice_frames=1)

    def recomputable(self) -> list[nn.Module]:
        return []  # layers fill and read a cache as they run: a second time they would find another

    @abstractmethod
    def _parts(self, frames: int) -> list[tuple[int, int]]:
        """The latent frames, from and to, that are decoded together, in order."""

    @abstractmethod
    def _decode_part(self, z: Tensor, first: bool, cache: Any) -> tuple[Tensor, Any]:
        """The autoencoder's own latents (1, C, t, h, w) -> pixels (1, 3, T, H, W), cache for the next part.

        first: whether the clip begins here; its cache is None.
        """

    @torch.no_grad()
    def encode(self, video: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1], T - 1 a multiple of frame_step -> latents (B, C, t, h, w). No gradients."""
        if (video.shape[2] - 1) % self.frame_step:
            raise ValueError(f"{video.shape[2]} frames: expected a multiple of {self.frame_step} and one more")
        found = []
        for clip in video.split(1):
            posterior = self.vae.encode(clip.to(self.vae.dtype)).latent_dist
            found.append(self._drawn(posterior, rng).to(video.dtype))
        return torch.cat(found)

    def decode(self, z: Tensor) -> Tensor:
        everything = torch.arange(self.pixel_frames(z.shape[2])).expand(len(z), -1)
        parts = range(len(self._parts(z.shape[2])))
        frames = [self._picked(clip, index, set(parts)) for clip, index in zip(z.split(1), everything, strict=True)]
        return _as_video(torch.cat(frames), len(z))

    def decode_frames(self, z: Tensor, index: Tensor) -> Tensor:
        """Only some frames of each clip of z (B, C, t, h, w) -> (B*K, 3, H, W), clip by clip.

        index: (B, K) long, numbers of the video's frames (not of latent frames), below `pixel_frames(t)`. Every
        frame has the value that `decode` gives it: the parts before it are decoded, those after the last are not.
        Differentiable in z, not clipped; but the gradient of a frame reaches only the latents of its own part and of
        the one before, so that the memory is that of a few frames and not of the clip.
        """
        frames = []
        for clip, numbers in zip(z.split(1), index.cpu(), strict=True):
            held = {self._part_of(int(n), z.shape[2]) for n in numbers}
            frames.append(self._picked(clip, numbers, held | {part - 1 for part in held}))
        return torch.cat(frames)

    def _part_of(self, frame: int, latents: int) -> int:
        """The part that holds a frame of the video; ValueError where there is none."""
        for part, (_, stop) in enumerate(self._parts(latents)):
            if 0 <= frame < self.pixel_frames(stop):
                return part
        raise ValueError(f"frame {frame}: {latents} latent frames decode to {self.pixel_frames(latents)} frames")

    def _picked(self, z: Tensor, index: Tensor, graph: set[int]) -> Tensor:
        """Frames `index` (K,) of one clip z (1, C, t, h, w) -> (K, 3, H, W); gradients through the parts `graph`."""
        own = (z / self.scaling + self.shift).to(self.vae.dtype)
        places: dict[int, list[int]] = {}  # by part: which of the index
        for place, frame in enumerate(index.tolist()):
            places.setdefault(self._part_of(frame, z.shape[2]), []).append(place)
        found: dict[int, Tensor] = {}
        cache, done = None, 0
        for part, (start, stop) in enumerate(self._parts(z.shape[2])[: max(places) + 1]):
            with torch.set_grad_enabled(torch.is_grad_enabled() and part in graph):
                pixels, cache = self._decode_part(own[:, :, start:stop], part == 0, cache)
            for place in places.get(part, []):
                found[place] = pixels[0, :, int(index[place]) - done]
            done += pixels.shape[2]
        return torch.stack([found[place] for place in range(len(index))]).to(z.dtype)


def _as_frames(video: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B*T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def _as_video(frames: Tensor, batch: int) -> Tensor:
    """(B*T, C, H, W) -> (B, C, T, H, W)."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)
