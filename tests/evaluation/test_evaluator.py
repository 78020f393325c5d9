"""The evaluator: streamed features make the same row as the metrics called by hand."""

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
from mcm.evaluation.evaluator import Evaluator
from mcm.evaluation.fid import clip_frame_features, fid, picture_features
from mcm.evaluation.frechet import FrechetStatistics
from mcm.evaluation.fvd import VideoFeatures, fvd
from mcm.evaluation.motion import motion_magnitude, temporal_std

Clips = Callable[..., Tensor]
SETTING = {"teacher": "t", "method": "mcm", "sampler": "consistency", "steps": 4, "guidance": 1.0}
PROMPTS = ["walks", "waves", "jumps", "bows", "turns"]


@pytest.fixture(scope="module")
def films(sliding_video: Clips) -> Tensor:
    """Five clips (5, 3, 8, 32, 32)."""
    return torch.cat([sliding_video(1.0 + 0.2 * i, 0.0, frames=8, side=32, seed=i) for i in range(5)])


@pytest.fixture(scope="module")
def evaluator(videomae_folder: Path, clip_folder: Path, noise_videos: Clips) -> Evaluator:
    return Evaluator(
        ["fvd", "clipsim", "fid", "motion"],
        reference=iter(noise_videos(12, seed=0)),
        fvd_model=videomae_folder,
        clip=clip_folder,
        pictures=iter(noise_videos(1, seed=1, frames=20)[0].transpose(0, 1)),
        frechet_samples=20,
    )


def test_row_equals_the_metrics_by_hand(
    evaluator: Evaluator, films: Tensor, videomae_folder: Path, clip_folder: Path, noise_videos: Clips
) -> None:
    evaluator.reset()
    evaluator.add(films[:2], PROMPTS[:2])
    evaluator.add(films[2:], PROMPTS[2:])
    motion = motion_magnitude(films)
    row = evaluator.row(**SETTING, teacher_motion=2 * motion, seconds=1.5)

    features, scorer = VideoFeatures(videomae_folder), ClipScorer(clip_folder)
    pictures = picture_features(scorer, noise_videos(1, seed=1, frames=20)[0].transpose(0, 1))
    assert row.n == 5
    assert_allclose(row.fvd, fvd(features(films), features(noise_videos(12, seed=0))), rtol=1e-4)
    assert_allclose(row.clipsim, scorer.similarity(films, PROMPTS).mean(), rtol=1e-4)
    assert_allclose(row.fid, fid(clip_frame_features(scorer, films, 2), pictures), rtol=1e-4)
    assert_allclose(row.motion_ratio, 0.5)
    assert_allclose(row.motion, motion.mean())
    assert_allclose(row.temporal_std, temporal_std(films).mean())
    assert row.seconds == 1.5
    assert set(row.intervals) == {"fvd", "clipsim", "fid", "motion", "temporal_std", "motion_ratio"}
    for name, (low, high) in row.intervals.items():
        value = getattr(row, name)
        assert low is not None
        assert high is not None
        assert low - 1e-9 <= value <= high + 1e-9
    # What a caller stores as the teacher's motion.
    assert_allclose(evaluator.values("motion"), motion)


def test_reset_forgets_clips_and_keeps_references(evaluator: Evaluator, films: Tensor) -> None:
    evaluator.reset()
    evaluator.add(films, PROMPTS)
    first = evaluator.row(**SETTING)
    evaluator.add(films.flip(-1), PROMPTS)
    assert evaluator.row(**SETTING).n == 10
    evaluator.reset()
    evaluator.add(films, PROMPTS)
    assert evaluator.row(**SETTING) == first
    assert first.motion_ratio is None


def test_a_refused_batch_leaves_nothing_behind(evaluator: Evaluator, films: Tensor) -> None:
    evaluator.reset()
    evaluator.add(films, PROMPTS)
    before = evaluator.row(**SETTING)
    with pytest.raises(UserError, match="5 generated videos and 4 prompts"):
        evaluator.add(films, PROMPTS[:4])
    with pytest.raises(UserError, match="diverged"):
        evaluator.add(films * float("nan"), PROMPTS)
    with pytest.raises(UserError, match="8 and 4 frames"):
        evaluator.add(films[:, :, :4], PROMPTS)
    assert evaluator.row(**SETTING) == before


def test_precomputed_statistics_serve_as_references(
    evaluator: Evaluator, films: Tensor, videomae_folder: Path, noise_videos: Clips
) -> None:
    features = VideoFeatures(videomae_folder)
    statistics = FrechetStatistics.from_features(features(noise_videos(12, seed=0)))
    light = Evaluator(["fvd"], reference=statistics, fvd_model=features, frechet_samples=5)
    light.add(films, PROMPTS)
    evaluator.reset()
    evaluator.add(films, PROMPTS)
    found = light.row(**SETTING)
    assert_allclose(found.fvd, evaluator.row(**SETTING).fvd, rtol=1e-4)
    assert (found.clipsim, found.fid, found.motion) == (None, None, None)


def test_few_clips_have_scores_but_no_intervals(evaluator: Evaluator, films: Tensor) -> None:
    evaluator.reset()
    with pytest.raises(UserError, match="no videos to measure"):
        evaluator.row(**SETTING)
    evaluator.add(films[:3], PROMPTS[:3])
    row = evaluator.row(**SETTING)
    assert row.fvd is not None
    assert set(row.intervals) == {"clipsim", "motion", "temporal_std"}
    evaluator.reset()
    evaluator.add(films[:1], PROMPTS[:1])
    with pytest.raises(UserError, match="at least 2"):
        evaluator.row(**SETTING)


def test_a_still_teacher_is_noted(films: Tensor) -> None:
    motion = Evaluator(["motion"])
    motion.add(films, PROMPTS)
    row = motion.row(**SETTING, teacher_motion=np.zeros(5))
    assert row.motion_ratio is None
    assert "stands still" in row.notes[0]
    with pytest.raises(UserError, match="one teacher clip"):
        motion.row(**SETTING, teacher_motion=np.ones(4))


def test_protocol_states_networks_references_and_resamples(evaluator: Evaluator) -> None:
    protocol = evaluator.protocol()
    assert set(protocol) == {"fvd", "clipsim", "fid", "motion"}
    assert protocol["fvd"]["reference_clips"] == 12
    assert protocol["fid"]["pictures"] == 20
    assert protocol["fid"]["frames_per_clip"] == 2
    assert len(protocol["clipsim"]["weights_sha256"]) == 64


def test_wrong_requests_are_named_before_any_network_is_loaded(clip_folder: Path) -> None:
    with pytest.raises(UserError, match=r"unknown metric 'fvdd'.*did you mean 'fvd'"):
        Evaluator(["fvdd"])
    with pytest.raises(UserError, match="no metric"):
        Evaluator([])
    with pytest.raises(UserError, match="'fvd' needs a video network"):
        Evaluator(["fvd"], reference=[])
    with pytest.raises(UserError, match="'fvd' needs real clips"):
        Evaluator(["fvd"], fvd_model="nowhere")
    with pytest.raises(UserError, match="need a CLIP folder"):
        Evaluator(["clipsim"])
    with pytest.raises(UserError, match="needs pictures"):
        Evaluator(["fid"], clip=clip_folder)
    with pytest.raises(UserError, match="no 'fvd' was measured"):
        Evaluator(["motion"]).values("fvd")
