"""Damage of known strength, which the video feature network learns to grade.

A Frechet distance must grow with damage (Unterthiner et al. 2018, section 4, measure theirs by such distortions).
Features of a network that only names what a clip shows do not: noise or ghosts of other frames change no name.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("blur", "ghosts", "noise", "contrast", "warp", "holes", "flicker")


def strengths(count: int, rng: torch.Generator, share: float = 0.35) -> Tensor:
    """How strong each of `KINDS` is, (count, 7), 0 to 1 (contrast: -1 to 1); each is there in a `share` of clips."""
    drawn = torch.rand(count, len(KINDS), generator=rng)
    drawn *= torch.rand(drawn.shape, generator=rng) < share
    drawn[:, 3] *= torch.randint(2, (count,), generator=rng) * 2 - 1
    return drawn


def damaged(video: Tensor, strength: Tensor, rng: torch.Generator) -> Tensor:
    """Clips (B, 3, T, H, W) in [-1, 1], damaged by the strengths (B, 7) of `KINDS`; 0 leaves them as they are."""
    of = dict(zip(KINDS, strength.T[..., None, None, None, None], strict=True))
    video = _holes(video, of["holes"], rng)
    video = _warped(video, of["warp"], rng)
    before = torch.cat([video[:, :, :1], video[:, :, :-1]], dim=2)
    after = torch.cat([video[:, :, 1:], video[:, :, -1:]], dim=2)
    video = video + 0.4 * of["ghosts"] * (before + after - 2 * video)
    video = video + of["blur"] * (_blurred(video) - video)
    middle = video.mean(dim=(2, 3, 4), keepdim=True)
    video = middle + (1 + 0.4 * of["contrast"]) * (video - middle)
    shape = (len(video), 1, video.shape[2], 1, 1)
    video = video + 0.15 * of["flicker"] * torch.randn(shape, generator=rng)
    return video + 0.12 * of["noise"] * torch.randn(video.shape, generator=rng)


def _blurred(video: Tensor) -> Tensor:
    """Twice a mean over 3 x 3 pixels."""
    for _ in range(2):
        video = F.avg_pool3d(F.pad(video, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), stride=1)
    return video


def _warped(video: Tensor, strength: Tensor, rng: torch.Generator) -> Tensor:
    """Every frame bent in its own way, by about 3 pixels of 64 at full strength."""
    clips, _, frames, high, wide = video.shape
    bends = torch.randn(clips * frames, 2, 5, 5, generator=rng)
    bends = F.interpolate(bends, size=(high, wide), mode="bicubic").permute(0, 2, 3, 1)
    bends = bends * (3 / 32) * strength.view(-1, 1, 1, 1).repeat_interleave(frames, 0)
    still = F.affine_grid(torch.eye(2, 3).expand(clips * frames, -1, -1), [clips * frames, 3, high, wide], False)
    flat = video.transpose(1, 2).flatten(0, 1)
    out = F.grid_sample(flat, still + bends, padding_mode="border", align_corners=False)
    return out.unflatten(0, (clips, frames)).transpose(1, 2)


def _holes(video: Tensor, strength: Tensor, rng: torch.Generator) -> Tensor:
    """Soft spots in every frame where only a coarse picture is left, as where limbs dissolve."""
    clips, _, frames, high, wide = video.shape
    spots = torch.randn(clips, 1, frames, 8, 8, generator=rng).flatten(0, 2)[:, None]
    spots = F.interpolate(spots, size=(high, wide), mode="bicubic").view(clips, 1, frames, high, wide)
    coarse = F.avg_pool3d(video, (1, 16, 16))
    coarse = F.interpolate(coarse.flatten(1, 2), size=(high, wide), mode="bilinear").view_as(video)
    return video + (4 * (spots - 1.2)).sigmoid() * strength * (coarse - video)
