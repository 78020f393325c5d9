"""Classifier-free guidance of a network: both of its words from one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mcm.diffusion.paths import Denoised
from mcm.diffusion.solvers import guide
from mcm.models.video import TextEmbedding

Denoise = Callable[[Tensor, Tensor, TextEmbedding], Denoised]


def guided(
    denoise: Denoise, z: Tensor, t: Tensor, text: TextEmbedding, empty: TextEmbedding, scale: float | Tensor
) -> Denoised:
    """What `denoise` says of z (B, C, T, h, w) at times t (B,), guided by `guide`, from one pass of 2B clips.

    text: B prompts; empty: the empty prompt, one row; scale: diffusers' guidance_scale, a number or (B,).
    """
    count = len(z)
    both = TextEmbedding(
        torch.cat([text.hidden, empty.hidden.expand(count, -1, -1)]),
        torch.cat([text.pooled, empty.pooled.expand(count, -1)]),
    )
    said = denoise(torch.cat([z, z]), torch.cat([t, t]), both)
    cond, uncond = (Denoised(said.x0[part], said.eps[part]) for part in (slice(count), slice(count, None)))
    return guide(cond, uncond, scale)
