"""Differentiable augmentation of pictures (DiffAugment, arXiv 2006.10738): the discriminator never sees a
bare one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

POLICY = ("color", "translation", "cutout")  # in DiffAugment's words
SHIFT = 0.125  # translation: at most this share of the side, either way
HOLE = 0.5  # cutout: the side of the hole, as a share of the picture's


def augment(
    frames: Tensor, rng: torch.Generator, strength: float = 1.0, policy: Sequence[str] = POLICY
) -> Tensor:
    """Colour, translation and cutout, those of them that `policy` names, of frames (N, 3, H, W) in [-1, 1], drawn for
    each frame. Same shape.

    strength: in [0, 1], of the paper's ranges and of the hole's side; 1 is the paper's, 0 changes nothing. What moves
    in from outside and what is cut out is 0, middle grey. Colours are not clipped. Differentiable in `frames`; the
    draws depend on N alone, so that pictures of another size, and other policies, get the same treatment.
    """
    draws = torch.rand((len(frames), 7), generator=rng, device=rng.device).to(frames.device)
    brightness, saturation, contrast, *places = draws.to(frames.dtype).unbind(-1)
    if "color" in policy:
        frames = colour(
            frames, strength * (brightness - 0.5), 1 + strength * (2 * saturation - 1), 1 + strength * (contrast - 0.5)
        )
    if "translation" in policy:
        frames = translate(frames, places[0], places[1], strength * SHIFT)
    if "cutout" in policy:
        frames = cutout(frames, places[2], places[3], strength * HOLE)
    return frames


def colour(frames: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """frames (N, 3, H, W): + brightness, then saturation and contrast as factors of the distance from each
    pixel's grey and from the picture's mean; the three (N,), 0, 1, 1 change nothing. The paper draws them
    from [-0.5, 0.5], [0, 2], [0.5, 1.5]."""
    brightness, saturation, contrast = (v.reshape(-1, 1, 1, 1) for v in (brightness, saturation, contrast))
    frames = frames + brightness
    grey = frames.mean(1, keepdim=True)
    frames = grey + saturation * (frames - grey)
    mean = frames.mean((1, 2, 3), keepdim=True)
    return mean + contrast * (frames - mean)


def translate(frames: Tensor, down: Tensor, right: Tensor, shift: float = SHIFT) -> Tensor:
    """frames (N, 3, H, W) moved by whole pixels; down and right (N,) in [0, 1): from -shift to +shift of the
    side."""
    height, width = frames.shape[-2:]
    rows, columns = _moved(height, down, shift), _moved(width, right, shift)
    most_down, most_right = _most(height, shift), _most(width, shift)
    padded = F.pad(frames, (most_right, most_right, most_down, most_down))
    n = torch.arange(len(frames), device=frames.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[n, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(frames: Tensor, down: Tensor, right: Tensor, hole: float = HOLE) -> Tensor:
    """frames (N, 3, H, W) with a hole of that share of either side; its centre (N,), (N,) in [0, 1) of the picture,
    so that it may hang over the border."""
    height, width = frames.shape[-2:]
    keep = ~(_inside(height, down, hole)[:, :, None] & _inside(width, right, hole)[:, None, :])
    return frames * keep[:, None].to(frames.dtype)


def _most(side: int, shift: float) -> int:
    return int(side * shift + 0.5)


def _moved(side: int, part: Tensor, shift: float) -> Tensor:
    """The rows (or columns) of the padded picture that are shown, (N, side)."""
    start = (part * (2 * _most(side, shift) + 1)).floor().long()
    return start[:, None] + torch.arange(side, device=part.device)


def _inside(side: int, part: Tensor, hole: float) -> Tensor:
    """Which rows (or columns) belong to the hole, (N, side)."""
    size = int(side * hole + 0.5)
    start = (part * side).floor().long() - size // 2
    place = torch.arange(side, device=part.device)
    return (place >= start[:, None]) & (place < (start + size)[:, None])
