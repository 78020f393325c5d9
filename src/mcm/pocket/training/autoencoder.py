"""The zoo's KL autoencoder: 64 x 64 pictures to 8 x 8 latents of 8 channels (factor 8), of every domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from mcm.pocket.training.corpus import Domains
from mcm.pocket.training.loop import Losses, train

KL_WEIGHT = 3e-4


def build(latent_channels: int = 8) -> Any:
    """The network, untrained."""
    settings: dict[str, Any] = {
        "latent_channels": latent_channels, "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 128), "sample_size": 64, "mid_block_add_attention": False,
    }  # fmt: skip
    return AutoencoderKL(**settings)


def figure_weight(keypoints: Tensor, size: int = 64) -> Tensor:
    """Where the puppet is counts more: 1 outside, 5 inside its box. Keypoints (N, 18, 2) -> (N, 1, H, W).

    The figure is an eighth of the picture; unweighted, the network paints scenery for a thousand steps before it
    gives clothes their colour.
    """
    pixel = (torch.arange(size) + 0.5) / size
    low, high = keypoints.amin(-2) - 0.07, keypoints.amax(-2) + 0.07
    inside_x = (pixel > low[:, None, 0]) & (pixel < high[:, None, 0])
    inside_y = (pixel > low[:, None, 1]) & (pixel < high[:, None, 1])
    return 1 + 4 * (inside_y[:, None, :, None] & inside_x[:, None, None, :]).float()


def reconstruction(x: Tensor, y: Tensor, weight: Tensor) -> Losses:
    """Absolute and squared error of the pixels, and absolute error of their differences (edges)."""
    weight = weight / weight.mean()
    error = (x - y).abs()
    across, down = (x - y).diff(dim=-1).abs(), (x - y).diff(dim=-2).abs()
    edges = (weight[..., 1:] * across).mean() + (weight[..., 1:, :] * down).mean()
    return {"pixels": (weight * error).mean(), "squares": 2 * (weight * error.square()).mean(), "edges": 0.5 * edges}


def fit(work: Path, steps: int = 6000, batch: int = 16) -> AutoencoderKL:
    """Train (or go on training) on frames of all domains. Sets `scaling_factor`."""
    model = build().to(memory_format=torch.channels_last)
    domains = Domains(work)

    def losses(step: int, rng: torch.Generator) -> Losses:
        x, joints = domains.draw(rng, batch).frames(rng)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = model.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng)
        y = model.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return {**reconstruction(x, y, figure_weight(joints)), "kl": KL_WEIGHT * kl}

    weights = train("autoencoder", model, losses, steps=steps, learning_rate=2e-3, work=work, weight_decay=0.0)
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        z = model.encode(domains.draw(rng, 256).frames(rng)[0]).latent_dist.mean
    model.register_to_config(scaling_factor=float(1 / z.std()))
    return model
