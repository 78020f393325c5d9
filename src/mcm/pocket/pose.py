"""The pose network: where a person's 18 points are in a frame, by heat maps and their centres (arXiv 1711.08229).

It is trained on rendered frames alone and takes no part in making videos, so that it can say, independently, how well
a video follows the pose that was asked for.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

POINTS, SIDE = 18, 64


def _block(inside: int, outside: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=stride, padding=dilation, dilation=dilation),
        nn.GroupNorm(8, outside),
        nn.ReLU(),
    )


class PoseNetwork(nn.Module):
    """Frames (N, 3, 64, 64) in [-1, 1] -> points (N, 18, 2), (x right, y down) as fractions of the side."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_block(3, 24, stride=2), _block(24, 48, stride=2), _block(48, 48))
        self.coarse = nn.Sequential(
            _block(48, 96, stride=2), _block(96, 96), _block(96, 96, dilation=2), _block(96, 96, dilation=4),
            _block(96, 96),
        )  # fmt: skip
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.both = nn.Sequential(_block(48 + 96, 96), nn.Conv2d(96, POINTS, 1))

    def forward(self, frames: Tensor) -> Tensor:
        return centres(self.heat(frames))

    def heat(self, frames: Tensor) -> Tensor:
        """Logits of each point's place, (N, 18, 16, 16)."""
        fine = self.fine(frames)
        return self.both(torch.cat([fine, self.up(self.coarse(fine))], dim=1))

    @classmethod
    def load(cls, file: Path) -> PoseNetwork:
        network = cls()
        network.load_state_dict({name: value.float() for name, value in load_file(file).items()})
        return network.eval().requires_grad_(False)


def cells(count: int) -> Tensor:
    """The middles of `count` cells that divide a side, as fractions of it."""
    return (torch.arange(count) + 0.5) / count


def centres(heat: Tensor) -> Tensor:
    """The mean place (N, 18, 2) under the softmax of logits (N, 18, h, w), (x right, y down) as fractions."""
    height, width = heat.shape[-2:]
    share = heat.flatten(-2).softmax(-1).unflatten(-1, (height, width))
    x = (share.sum(-2) * cells(width).to(heat)).sum(-1)
    y = (share.sum(-1) * cells(height).to(heat)).sum(-1)
    return torch.stack([x, y], dim=-1)


@torch.no_grad()
def keypoint_error(network: nn.Module, videos: Tensor, keypoints: Tensor, batch: int = 256) -> Tensor:
    """How far a video's points are from those asked for: the mean distance in pixels of a side of 64, (B,).

    network: a `PoseNetwork`; videos: (B, 3, T, 64, 64) in [-1, 1]; keypoints: (B, T, 18, 2) as fractions of the side,
    as `world.stage` gives them, or (B, T, 18, 3) with confidences: points without any do not count. ValueError for a
    clip without points, or other shapes.
    """
    count, frames = videos.shape[0], videos.shape[2]
    if keypoints.shape[:3] != (count, frames, POINTS) or videos.shape[3:] != (SIDE, SIDE):
        raise ValueError(f"keypoints {tuple(keypoints.shape)} for videos {tuple(videos.shape)}")
    pictures = videos.transpose(1, 2).flatten(0, 1)
    found = torch.cat([network(part) for part in pictures.split(batch)]).unflatten(0, (count, frames))
    distance = SIDE * (found - keypoints[..., :2]).norm(dim=-1)
    seen = torch.ones_like(distance) if keypoints.shape[-1] == 2 else (keypoints[..., 2] > 0).to(distance)
    if not seen.flatten(1).any(1).all():
        raise ValueError("a clip has no visible point")
    return (distance * seen).flatten(1).sum(1) / seen.flatten(1).sum(1)
