"""AnimateDiff (arXiv 2307.04725): a Stable Diffusion UNet with motion modules between its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcm.errors import UserError
from mcm.models.folders import class_of, component, load_network
from mcm.models.video import Control, Family, VideoDenoiser


class MotionDenoiser(VideoDenoiser):
    """Over diffusers' UNetMotionModel."""

    takes_controlnet = True

    def predict(self, z: Tensor, t: Tensor, hidden: Tensor, control: Control | None) -> Tensor:
        # Inside, frames are a batch of B*T pictures; the network repeats the time for them, but not the text.
        text = hidden.repeat_interleave(z.shape[2], dim=0)
        extra = control.residuals() if control is not None else {}
        return self.network(z, t, encoder_hidden_states=text, **extra).sample

    def is_temporal(self, weight: str) -> bool:
        return "motion_modules" in weight

    @contextmanager
    def pictures(self) -> Iterator[None]:
        """Motion modules hand on what they are given: what remains is the Stable Diffusion UNet."""
        modules = [m for m in self.network.modules() if type(m).__name__ == "AnimateDiffTransformer3D"]
        hooks = [m.register_forward_hook(lambda module, given, out: given[0]) for m in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class AnimateDiff(Family):
    """Folders with a UNetMotionModel, or with a Stable Diffusion UNet beside a motion adapter."""

    name = "animatediff"
    layout = "unet/ of class UNetMotionModel, or of class UNet2DConditionModel beside motion_adapter/"
    denoiser = MotionDenoiser
    defaults: ClassVar = {"frames": 16, "side": 512, "fps": 8, "guidance_scale": 7.5}

    def matches(self, folder: Path) -> bool:
        found = class_of(folder, "unet")
        if found == "UNet2DConditionModel":
            # That alone is a picture model: it is ours beside an adapter, or where the index says so.
            return (folder / "motion_adapter").is_dir() or class_of(folder, "") == "AnimateDiffPipeline"
        return found == "UNetMotionModel"

    def max_frames(self, network: Any) -> int | None:
        return int(network.config.motion_max_seq_length)  # the length of its table of positions in time

    def network(self, folder: Path, dtype: torch.dtype) -> Any:
        from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

        unet = component(folder, "unet")
        if class_of(folder, "unet") == "UNetMotionModel":
            return load_network(UNetMotionModel, unet, dtype)
        adapter = load_network(MotionAdapter, component(folder, "motion_adapter"), dtype)
        pictures = load_network(UNet2DConditionModel, unet, dtype)
        try:
            network: Any = UNetMotionModel.from_unet2d(pictures, adapter)
        except (ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: unet/ and motion_adapter/ do not fit each other: {reason}") from error
        return network.eval().requires_grad_(False)  # in the dtype of `pictures`


FAMILY = AnimateDiff()
