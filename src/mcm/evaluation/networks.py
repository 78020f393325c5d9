"""What the judging networks share: finding their folder, naming their weights, and preparing pixels.

Pixels are prepared with tensor operations of our own, not with transformers' image processors (those want
torchvision).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mcm.errors import UserError
from mcm.models.folders import find_folder, read_json


def network_folder(name: str | Path, model_type: str, purpose: str) -> Path:
    """The folder of a transformers network: a local folder, a pocket name, or a hub id (see `find_folder`).

    model_type: what the folder's config.json must say. purpose: for messages ("the FVD network"). UserError
    otherwise.
    """
    folder = find_folder(name, purpose)
    found = read_json(folder / "config.json", purpose).get("model_type")
    if found != model_type:
        raise UserError(
            f"{purpose} {name} is of type {found!r}: expected model_type {model_type!r} in its config.json"
        )
    return folder


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the folder's safetensors files in order of their names: which weights measured."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class Normalise:
    """[-1, 1] pixels to the scale a network was trained on: ((x + 1) / 2 - mean) / std, per channel.

    mean, std come from the folder's preprocessor_config.json, else from `default_mean`, `default_std`."""

    def __init__(
        self, folder: Path, default_mean: tuple[float, ...], default_std: tuple[float, ...], purpose: str
    ):
        path = folder / "preprocessor_config.json"
        settings = read_json(path, purpose) if path.is_file() else {}
        self.mean = tuple(map(float, settings.get("image_mean", default_mean)))
        self.std = tuple(map(float, settings.get("image_std", default_std)))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(
                f"{purpose}: {path} has image_mean {self.mean} and image_std {self.std}: expected three "
                "numbers each, std above 0"
            )

    def __call__(self, frames: Tensor) -> Tensor:
        """frames (N, 3, H, W) in [-1, 1] -> the same shape, normalised."""
        mean = torch.tensor(self.mean, device=frames.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=frames.device).view(3, 1, 1)
        return ((frames + 1) / 2 - mean) / std


def resize(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Antialiased resize of frames (N, 3, H, W) in [-1, 1] to size (H', W'); bicubic overshoot is cut off."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    return F.interpolate(frames, size=size, mode=mode, antialias=True, align_corners=False).clamp(-1.0, 1.0)


def checked_videos(videos: Tensor, what: str = "videos") -> Tensor:
    """`videos` (B, 3, T, H, W) cut to [-1, 1], which is what a player shows.

    UserError when they are no floats of that shape, empty, hold NaN, or look like 0..255."""
    if videos.ndim != 5 or videos.shape[1] != 3 or not videos.is_floating_point():
        raise UserError(
            f"{what} are {videos.dtype} of shape {tuple(videos.shape)}: expected floats in [-1, 1] of shape "
            "(clips, 3, frames, height, width)"
        )
    return _checked_range(videos, what)


def checked_frames(frames: Tensor, what: str = "frames") -> Tensor:
    """`frames` (N, 3, H, W) cut to [-1, 1]; UserError as in `checked_videos`."""
    if frames.ndim != 4 or frames.shape[1] != 3 or not frames.is_floating_point():
        raise UserError(
            f"{what} are {frames.dtype} of shape {tuple(frames.shape)}: expected floats in [-1, 1] of shape "
            "(frames, 3, height, width)"
        )
    return _checked_range(frames, what)


def _checked_range(pixels: Tensor, what: str) -> Tensor:
    if pixels.numel() == 0 or not pixels.isfinite().all():
        raise UserError(
            f"{what} are empty or hold NaN or infinity: the model that made them diverged, or a file is bad"
        )
    if float(pixels.min()) >= 0.0 and float(pixels.max()) > 4.0:  # 0..255: would only show as a bad score
        raise UserError(f"{what} reach up to {float(pixels.max()):.4g}: expected pixels in [-1, 1]")
    return pixels.clamp(-1.0, 1.0)


def batches(items: Iterable[Tensor], single: int, size: int) -> Iterator[Tensor]:
    """Regroups tensors of `single` dimensions, or batches of them, into batches of at most `size`.

    Items of different shapes never share a batch."""
    held: list[Tensor] = []
    for item in items:
        for one in [item] if item.ndim == single else item:
            if held and (len(held) == size or one.shape != held[0].shape):
                yield torch.stack(held)
                held = []
            held.append(one)
    if held:
        yield torch.stack(held)
