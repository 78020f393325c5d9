"""Frechet video distance (Unterthiner et al. 2018, arXiv 1812.01717) in the features of a VideoMAE network.

Published FVDs use an I3D trained on Kinetics (see `evaluation.i3d`); its weights are in no package, and features
of a self-supervised video transformer are less blind to motion besides (Ge et al. 2024, arXiv 2404.12391). A
distance measured here therefore compares only with others of the same `protocol()`, never with a published table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel

from mcm.errors import UserError
from mcm.evaluation.frechet import Array, FrechetStatistics, frechet_distance
from mcm.evaluation.networks import (
    Normalise,
    batches,
    checked_videos,
    network_folder,
    resize,
    weights_sha256,
)
from mcm.models.folders import load_network, read_json

WITH_HEADS = (VideoMAEForVideoClassification, VideoMAEForPreTraining)


def frame_index(frames: int, wanted: int) -> list[int]:
    """`wanted` numbers spread evenly over a clip of `frames`, from the first to the last, rounded."""
    if wanted == 1:
        return [(frames - 1) // 2]
    return [int(i * (frames - 1) / (wanted - 1) + 0.5) for i in range(wanted)]


class ClipFeatures(ABC):
    """A network that turns clips into features, whose Frechet distance is an FVD. dimensions: D of the features."""

    device: torch.device
    batch_size: int
    dimensions: int

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Array:
        """videos (B, 3, T, H, W) float in [-1, 1], any H, W -> features (B, D) float64."""
        videos = checked_videos(videos)
        return np.concatenate([self._features(part) for part in videos.split(self.batch_size)])

    @abstractmethod
    def _features(self, videos: Tensor) -> Array:
        """As `__call__`, of at most `batch_size` clips that are checked already."""

    def collect(self, videos: Iterable[Tensor]) -> Array:
        """Features (n, D) of a stream of clips (3, T, H, W) or batches (B, 3, T, H, W), batch by batch."""
        features = [self(batch) for batch in batches(videos, single=4, size=self.batch_size)]
        if not features:
            raise UserError("no reference videos: the FVD needs at least 2")
        return np.concatenate(features)

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What an FVD must state to be compared: equal protocols measure in the same units."""


class VideoFeatures(ClipFeatures):
    """Features of clips: the last hidden states of a VideoMAE encoder, averaged over its tokens.

    folder: a transformers folder or hub id of VideoMAEForVideoClassification, VideoMAEForPreTraining or
    VideoMAEModel; the network is used in float32 whatever precision stores it. UserError when the folder is
    not such a network.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", batch_size: int = 8):
        purpose = "the FVD network"
        self.folder = network_folder(folder, "videomae", purpose)
        self.name = Path(folder).name if Path(folder).is_dir() else str(folder)
        self.device, self.batch_size = torch.device(device), batch_size
        architectures = read_json(self.folder / "config.json", purpose).get("architectures") or []
        # Loaded as what it was saved as, so that no head is reported as unexpected; only the encoder is kept.
        whole = [kind for kind in WITH_HEADS if kind.__name__ in architectures]
        network = load_network(whole[0] if whole else VideoMAEModel, self.folder).to(self.device)
        self.network: VideoMAEModel = network.videomae if whole else network
        config = self.network.config
        size = config.image_size
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.frames, self.dimensions = int(config.num_frames), int(config.hidden_size)
        self.normalise = Normalise(self.folder, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), purpose)
        self.sha256 = weights_sha256(self.folder)

    def _features(self, videos: Tensor) -> Array:
        picked = videos[:, :, frame_index(videos.shape[2], self.frames)].to(self.device, torch.float32)
        frames = picked.transpose(1, 2).flatten(0, 1)  # (B T, 3, H, W)
        frames = self.normalise(resize(frames, self.size, "bilinear"))
        hidden = self.network(frames.unflatten(0, (-1, self.frames))).last_hidden_state  # (B, tokens, D)
        return hidden.mean(dim=1).cpu().numpy().astype(np.float64)

    def protocol(self) -> dict[str, Any]:
        return {
            "network": self.name,
            "weights_sha256": self.sha256,
            "frames": self.frames,
            "size": list(self.size),
            "resize": "bilinear, antialiased",
            "resampling": "evenly spaced frames, index rounding",
            "mean": list(self.normalise.mean),
            "std": list(self.normalise.std),
            "pooling": "mean of the last hidden states",
            "dimensions": self.dimensions,
        }


def fvd(features_a: ArrayLike | FrechetStatistics, features_b: ArrayLike | FrechetStatistics) -> float:
    """Frechet video distance of two sets of `ClipFeatures`, each (n, D) or precomputed statistics."""
    return frechet_distance(features_a, features_b)
