"""The ControlNet for poses of pocket-animatediff, trained as the real ones: on stills, beside the frozen image UNet.

It reads the renderer's exact keypoints, drawn by the function that draws a user's (`mcm.data.poses.draw`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor

from mcm.data.poses import draw as draw_poses
from mcm.pocket.sources import poses_of
from mcm.pocket.training.corpus import Corpus, draw
from mcm.pocket.training.latents import Captions, Latents
from mcm.pocket.training.loop import Losses, train
from mcm.pocket.training.teachers import CLIPS, denoising_loss

FRAMES, SIDE = 8, 64
EMBEDDING = (16, 32, 48, 64)  # three steps by two: pictures of 64 x 64 to latents of 8 x 8
# Captions left out, as often as ControlNet's authors did (arXiv 2302.05543, 3.3): the pose is then all that is told.
DROPPED = 0.5


def build(image: UNet2DConditionModel) -> ControlNetModel:
    """The network, untrained: a copy of the image UNet's encoder whose words begin as zeros."""
    return ControlNetModel.from_unet(image, conditioning_embedding_out_channels=EMBEDDING)


def skeletons(points: np.ndarray) -> Tensor:
    """Points (N, 18, 3) in fractions of the frame -> pictures (N, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(draw_poses(points, (SIDE, SIDE))).permute(0, 3, 1, 2).float() / 255


def fit(work: Path, steps: int, batch: int = 32) -> ControlNetModel:
    """Stills of the broadcast domain with their captions and skeletons; the image UNet is that of `work`/image."""
    vae: Any = AutoencoderKL.from_pretrained(work / "autoencoder", torch_dtype=torch.float32).eval()
    latents = Latents(work, Corpus(work, "train", "broadcast", CLIPS), vae, "train-broadcast")
    captions = Captions(work / "clip")
    points = np.stack([poses.points for poses in poses_of(latents.specs, FRAMES)])
    unet: Any = UNet2DConditionModel.from_pretrained(work / "image", torch_dtype=torch.float32)
    unet.eval().requires_grad_(False)
    control: Any = build(unet)

    def losses(step: int, rng: torch.Generator) -> Losses:
        index, moments = draw(rng, batch, len(latents)), draw(rng, batch, FRAMES)
        text = captions.drop([latents.specs[i].caption for i in index], rng, DROPPED)
        shown = skeletons(points[index, moments])

        def network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            said = control(x, t, encoder_hidden_states=c, controlnet_cond=shown)
            return unet(
                x, t, c,
                down_block_additional_residuals=tuple(said.down_block_res_samples),
                mid_block_additional_residual=said.mid_block_res_sample,
            ).sample  # fmt: skip

        return denoising_loss(network, latents.z[index, :, moments].float(), text, rng)

    control.load_state_dict(
        train("control", control, losses, steps=steps, learning_rate=1e-3, work=work, average=0.998)
    )
    control.save_pretrained(work / "control")
    return control
