"""Stable Diffusion (arXiv 2112.10752) as a teacher of stills: every frame is a picture of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcm.models.folders import class_of, component, load_network
from mcm.models.video import Control, Family, VideoDenoiser


class PictureDenoiser(VideoDenoiser):
    """Over diffusers' UNet2DConditionModel, which takes (B*T, C, h, w)."""

    def predict(self, z: Tensor, t: Tensor, hidden: Tensor, control: Control | None) -> Tensor:
        frames = z.shape[2]
        pictures = z.transpose(1, 2).flatten(0, 1)
        times, text = (x.repeat_interleave(frames, dim=0) for x in (t, hidden))
        said = self.network(pictures, times, encoder_hidden_states=text).sample
        return said.unflatten(0, (-1, frames)).transpose(1, 2)


class StableDiffusion(Family):
    """Folders of StableDiffusionPipeline."""

    name = "stable-diffusion"
    layout = "model_index.json of class StableDiffusionPipeline"
    denoiser = PictureDenoiser
    defaults: ClassVar = {"frames": 1, "side": 512, "fps": 1, "guidance_scale": 7.5}

    def matches(self, folder: Path) -> bool:
        return class_of(folder, "") == "StableDiffusionPipeline"

    def network(self, folder: Path, dtype: torch.dtype) -> Any:
        from diffusers import UNet2DConditionModel

        return load_network(UNet2DConditionModel, component(folder, "unet"), dtype)


FAMILY = StableDiffusion()
