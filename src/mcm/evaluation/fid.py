"""Frechet distance between frames of clips and a picture set, in the image features of CLIP.

Why CLIP and not Inception or DINOv2: the judge must not be the backbone of the frame discriminator. A student
trained to satisfy heads on DINOv2 features lowers a distance measured in those features without its frames
looking better (the same happens with ImageNet discriminators and Inception FIDs: Kynkaanniemi et al. 2023,
arXiv 2203.06026, who propose CLIP features). CLIP's picture side takes no part in training.

Why the patches half-way up and not the image's word at the end: the end is trained to say what captions say, and
captions say nothing of style. There, frames of the laboratory's film in the very style of the pictures have 0.47
of the distance of a teacher's blurred, marked and pale ones; half-way up they have 0.1 (docs/log.md). A published
Inception FID is on another scale and cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mcm.errors import UserError
from mcm.evaluation.clipsim import ClipScorer
from mcm.evaluation.frechet import Array, FrechetStatistics, frechet_distance
from mcm.evaluation.networks import batches, checked_videos


def judged_frames(frames: int, per_clip: int) -> list[int]:
    """Frames judged in a clip of `frames`: the middles of `per_clip` equal parts, or all frames."""
    if per_clip < 1:
        raise UserError(f"frames_per_clip={per_clip}: expected at least 1")
    judged = min(per_clip, frames)
    return [int((i + 0.5) * frames / judged) for i in range(judged)]


def clip_frame_features(scorer: ClipScorer, videos: Tensor, per_clip: int = 2) -> Array:
    """Features (B, k, D) float64 of k = min(per_clip, T) frames of each clip.

    videos: (B, 3, T, H, W) in [-1, 1]."""
    videos = checked_videos(videos)
    picked = videos[:, :, judged_frames(videos.shape[2], per_clip)]
    features = scorer.appearance_features(picked.transpose(1, 2).flatten(0, 1))
    return features.unflatten(0, (len(videos), -1)).double().numpy()


def picture_features(scorer: ClipScorer, pictures: Iterable[Tensor]) -> Array:
    """Features (n, D) float64 of a stream of pictures (3, H, W) or batches (N, 3, H, W), batch by batch."""
    parts = [scorer.appearance_features(batch) for batch in batches(pictures, single=3, size=scorer.batch_size)]
    if not parts:
        raise UserError("no pictures to compare the frames with: the FID needs at least 2")
    return torch.cat(parts).numpy().astype(np.float64)


def fid(frames: ArrayLike | FrechetStatistics, pictures: ArrayLike | FrechetStatistics) -> float:
    """FID of frame features, (n, D) or (clips, k, D), and picture features (m, D), or statistics."""
    if not isinstance(frames, FrechetStatistics):
        array = np.asarray(frames, dtype=np.float64)
        frames = FrechetStatistics.from_features(array.reshape(-1, array.shape[-1]), "frame features")
    return frechet_distance(frames, pictures)
