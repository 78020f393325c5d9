"""ModelScopeT2V (arXiv 2308.06571): a UNet with temporal convolutions and temporal attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcm.models.folders import class_of, component, load_network
from mcm.models.video import Control, Family, VideoDenoiser


class UNet3DDenoiser(VideoDenoiser):
    """Over diffusers' UNet3DConditionModel."""

    def predict(self, z: Tensor, t: Tensor, hidden: Tensor, control: Control | None) -> Tensor:
        extra = control.residuals() if control is not None else {}
        return self.network(z, t, encoder_hidden_states=hidden, **extra).sample


class ModelScope(Family):
    """Folders with a UNet3DConditionModel. Its temporal layers take any number of frames."""

    name = "modelscope"
    layout = "unet/ of class UNet3DConditionModel"
    denoiser = UNet3DDenoiser
    defaults: ClassVar = {"frames": 16, "side": 256, "fps": 8, "guidance_scale": 9.0}

    def matches(self, folder: Path) -> bool:
        return class_of(folder, "unet") == "UNet3DConditionModel"

    def network(self, folder: Path, dtype: torch.dtype) -> Any:
        from diffusers import UNet3DConditionModel

        return load_network(UNet3DConditionModel, component(folder, "unet"), dtype)


FAMILY = ModelScope()
