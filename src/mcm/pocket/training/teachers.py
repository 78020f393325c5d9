"""The two teachers: pocket-animatediff (image UNet, then motion adapter) and pocket-modelscope (3-D UNet).

As with the real ones, the image UNet learns from stills first; the motion adapter is then trained on broadcast clips
with the image UNet frozen, and the 3-D UNet starts from the image UNet's spatial weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from torch import Tensor

from mcm.diffusion.paths import VariancePreserving
from mcm.pocket.training.corpus import Corpus, draw
from mcm.pocket.training.latents import Captions, Latents
from mcm.pocket.training.loop import Losses, train

CHANNELS, LATENT_CHANNELS, TEXT_WIDTH, HEADS = (48, 96), 8, 96, 4
CLIPS = 3000
# What the image UNet and the 3-D UNet have in common.
SHARED: dict[str, Any] = {
    "sample_size": 8, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "layers_per_block": 1,
    "block_out_channels": CHANNELS, "cross_attention_dim": TEXT_WIDTH, "norm_num_groups": 16,
}  # fmt: skip
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def build_image() -> UNet2DConditionModel:
    """The image UNet, untrained: latents of 8 x 8, two resolutions, cross attention at both."""
    return UNet2DConditionModel(
        **SHARED, attention_head_dim=HEADS,
        use_linear_projection=True,  # as the 3-D UNet has it, which starts from these weights
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip


def build_adapter() -> MotionAdapter:
    """The motion adapter, untrained: temporal attention after every block, up to 32 frames."""
    return MotionAdapter(
        block_out_channels=CHANNELS, motion_layers_per_block=1, motion_num_attention_heads=HEADS,
        motion_norm_num_groups=16, motion_max_seq_length=32, use_motion_mid_block=True,
    )  # fmt: skip


def build_video(image: UNet2DConditionModel) -> UNet3DConditionModel:
    """The 3-D UNet with the image UNet's spatial weights; its temporal layers begin as the identity."""
    blocks: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock3D",) * 2, "up_block_types": ("CrossAttnUpBlock3D",) * 2,
    }  # fmt: skip
    unet = UNet3DConditionModel(**SHARED, **blocks, attention_head_dim=CHANNELS[0] // HEADS)
    mine = unet.state_dict()
    shared = {k: v for k, v in image.state_dict().items() if k in mine and mine[k].shape == v.shape}
    unet.load_state_dict(mine | shared)
    missing = len(image.state_dict()) - len(shared)
    print(f"pocket-modelscope: {len(shared)} tensors taken from the image UNet, {missing} not", flush=True)
    return unet


def denoising_loss(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], z: Tensor, text: Tensor, rng: torch.Generator
) -> Losses:
    """Noise-prediction loss at uniform timesteps, weighted by (1 + SNR) / (0.1 + SNR), at most 5 / SNR.

    With min-SNR weights alone (gamma 5, Hang et al. 2023), which are 1 wherever the noise prevails, what is decided
    there, the pose and where the figure stands, counted for next to nothing. These weights make every timestep's loss
    about equal. The middle of the picture, where the figure acts, counts three times; the weight is the same for
    every clip, so the best prediction stays the mean.
    """
    path = VariancePreserving.from_config(SCHEDULER)
    t = torch.randint(1000, (len(z),), generator=rng)
    noise = torch.randn(z.shape, generator=rng)
    middle = torch.ones(z.shape[-1])
    middle[z.shape[-1] // 4 : -(z.shape[-1] // 4)] = 3
    error = (network(path.diffuse(z, noise, t), t, text) - noise).square() * (middle / middle.mean())
    snr = (path.alpha(t) / path.sigma(t)).square()
    weight = torch.minimum((1 + snr) / (0.1 + snr), 5 / snr)
    return {"noise": (error.flatten(1).mean(1) * weight).mean()}


def _material(work: Path, clips: int) -> tuple[Latents, Captions]:
    vae = AutoencoderKL.from_pretrained(work / "autoencoder", torch_dtype=torch.float32).eval()
    return Latents(work, Corpus(work, "train", "broadcast", clips), vae, "train-broadcast"), Captions(work / "clip")


def fit_image(work: Path, steps: int, batch: int = 64) -> UNet2DConditionModel:
    """Stage one: stills of the broadcast domain with their captions."""
    latents, captions = _material(work, CLIPS)
    unet = build_image()

    def losses(step: int, rng: torch.Generator) -> Losses:
        index, moments = draw(rng, batch, len(latents)), draw(rng, batch, 8)
        text = captions.drop([latents.specs[i].caption for i in index], rng)
        z = latents.z[index, :, moments].float()
        return denoising_loss(lambda x, t, c: unet(x, t, c).sample, z, text, rng)

    unet.load_state_dict(train("image", unet, losses, steps=steps, learning_rate=1.5e-3, work=work, average=0.998))
    unet.save_pretrained(work / "image")
    return unet


def _clip_losses(latents: Latents, captions: Captions, network: Callable[..., Tensor], batch: int):
    def losses(step: int, rng: torch.Generator) -> Losses:
        index = draw(rng, batch, len(latents))
        text = captions.drop([latents.specs[i].caption for i in index], rng)
        return denoising_loss(network, latents.clips(index), text, rng)

    return losses


def fit_motion(work: Path, steps: int, batch: int = 12) -> UNetMotionModel:
    """Stage two of pocket-animatediff: the motion adapter alone, on broadcast clips."""
    latents, captions = _material(work, CLIPS)
    unet: Any = UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(work / "image"), build_adapter())
    motion = [p for name, p in unet.named_parameters() if "motion_modules" in name]

    def network(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return unet(x, t, text.repeat_interleave(x.shape[2], 0)).sample

    losses = _clip_losses(latents, captions, network, batch)
    unet.load_state_dict(
        train("motion", unet, losses, steps=steps, learning_rate=1.5e-3, work=work, parameters=motion, average=0.998)
    )
    unet.save_pretrained(work / "motion")
    return unet


def fit_video(work: Path, steps: int, batch: int = 8) -> UNet3DConditionModel:
    """pocket-modelscope: every weight, on broadcast clips."""
    latents, captions = _material(work, CLIPS)
    unet = build_video(UNet2DConditionModel.from_pretrained(work / "image"))
    losses = _clip_losses(latents, captions, lambda x, t, c: unet(x, t, c).sample, batch)
    unet.load_state_dict(train("video", unet, losses, steps=steps, learning_rate=1e-3, work=work, average=0.998))
    unet.save_pretrained(work / "video")
    return unet
