"""Distance of frames to a picture set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from mcm.errors import UserError
from mcm.evaluation.clipsim import ClipScorer
from mcm.evaluation.fid import clip_frame_features, fid, judged_frames, picture_features

Clips = Callable[..., Tensor]


def test_judged_frames_are_the_middles_of_equal_parts() -> None:
    assert judged_frames(8, 2) == [2, 6]
    assert judged_frames(16, 4) == [2, 6, 10, 14]
    assert judged_frames(3, 3) == [0, 1, 2]
    assert judged_frames(2, 5) == [0, 1]
    with pytest.raises(UserError, match="frames_per_clip=0"):
        judged_frames(8, 0)


def test_features_belong_to_the_judged_frames(clip_folder: Path, noise_videos: Clips) -> None:
    scorer = ClipScorer(clip_folder)
    videos = noise_videos(3, seed=0)
    found = clip_frame_features(scorer, videos, per_clip=2)
    assert found.shape == (3, 2, 32)
    assert_allclose(found[1, 1], scorer.appearance_features(videos[1, :, 6].unsqueeze(0))[0].numpy(), atol=1e-5)


def test_frames_are_nearer_to_pictures_of_their_own_style(clip_folder: Path, sliding_video: Clips) -> None:
    scorer = ClipScorer(clip_folder)
    clips = torch.cat([sliding_video(1.0, 0.0, frames=4, side=32, seed=seed) for seed in range(20)])
    same = torch.cat(
        [sliding_video(0.0, 0.0, frames=1, side=32, seed=seed)[:, :, 0] for seed in range(50, 90)]
    )
    frames = clip_frame_features(scorer, clips)
    own = fid(frames, picture_features(scorer, iter(same)))
    other = fid(frames, picture_features(scorer, [same.sign()]))
    assert own < 0.7 * other
    flat = frames.reshape(-1, frames.shape[-1])
    assert fid(frames, flat) == fid(flat, flat) < 1e-6 * other


def test_no_pictures_is_an_error(clip_folder: Path) -> None:
    scorer = ClipScorer(clip_folder)
    with pytest.raises(UserError, match="no pictures"):
        picture_features(scorer, [])
    with pytest.raises(UserError, match="at least 2"):
        fid(np.ones((4, 32)), picture_features(scorer, [torch.zeros(3, 32, 32)]))
