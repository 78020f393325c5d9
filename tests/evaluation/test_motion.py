"""Optical flow of textures that move by a known amount."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from mcm.errors import UserError
from mcm.evaluation.motion import motion_magnitude, motion_ratio, ratio_of_motion, temporal_std

Clips = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("dx", "dy", "side"), [(1.0, 0.0, 64), (0.0, 2.0, 64), (1.5, -2.0, 64), (0.5, 0.5, 64), (3.0, 4.0, 160)]
)
def test_flow_of_a_sliding_texture_is_its_shift(
    dx: float, dy: float, side: int, sliding_video: Clips
) -> None:
    """64 is enlarged to 128 for the flow, 160 is not."""
    found = motion_magnitude(sliding_video(dx, dy, side=side))
    assert_allclose(found * side, [math.hypot(dx, dy)], rtol=0.12)


def test_a_fraction_of_the_height_does_not_depend_on_the_size(sliding_video: Clips) -> None:
    """The same film at 48 and at 192 lines: the same fraction of the height a frame."""
    large = sliding_video(4.0, 4.0, side=192, seed=3)
    small = torch.nn.functional.interpolate(
        large[0].transpose(0, 1), size=(48, 48), mode="bilinear", antialias=True
    )
    small = small.transpose(0, 1).unsqueeze(0)
    assert_allclose(motion_magnitude(small), motion_magnitude(large), rtol=0.15)


def test_wide_frames_are_measured_by_their_height(sliding_video: Clips) -> None:
    found = motion_magnitude(sliding_video(2.0, 0.0, side=48, width=96))
    assert_allclose(found * 48, [2.0], rtol=0.15)


def test_still_clips_do_not_move_and_each_clip_is_measured_alone(sliding_video: Clips) -> None:
    still = sliding_video(0.0, 0.0)
    moving = sliding_video(2.0, 0.0)
    found = motion_magnitude(torch.cat([moving, still, moving]))
    assert found.shape == (3,)
    assert found[1] < 1e-4
    assert found[0] == found[2] > 0.02


def test_temporal_std_counts_flicker_that_is_no_motion(noise_videos: Clips, sliding_video: Clips) -> None:
    still = sliding_video(0.0, 0.0, frames=6)
    assert temporal_std(still) == 0.0
    blink = still.clone()
    blink[:, :, ::2] += 0.1
    assert_allclose(temporal_std(blink.clamp(-1, 1)), [0.05], rtol=0.05)
    assert_allclose(temporal_std(noise_videos(4, seed=0, frames=64)), np.full(4, 1 / math.sqrt(3)), rtol=0.02)


def test_ratio_of_paired_clips(sliding_video: Clips) -> None:
    student = torch.cat([sliding_video(1.0, 0.0, seed=s) for s in range(4)])
    teacher = torch.cat([sliding_video(2.0, 0.0, seed=s) for s in range(4)])
    half = motion_ratio(student, teacher)
    assert half.n == 4
    assert_allclose(half.value, 0.5, rtol=0.1)
    assert half.interval[0] <= half.value <= half.interval[1]
    same = motion_ratio(teacher, teacher)
    assert (same.value, same.reason) == (1.0, None)
    assert_allclose(same.interval, (1.0, 1.0))


def test_ratio_is_of_means_so_one_still_teacher_clip_does_not_rule() -> None:
    found = ratio_of_motion([1.0, 1.0, 1.0], [1.0, 1.0, 1e-9])
    assert_allclose(found.value, 1.5, rtol=1e-6)


def test_ratio_to_a_still_teacher_says_why_there_is_none(sliding_video: Clips) -> None:
    found = motion_ratio(sliding_video(1.0, 0.0).repeat(2, 1, 1, 1, 1), torch.zeros(2, 3, 4, 32, 32))
    assert math.isnan(found.value)
    assert found.reason is not None
    assert "stands still" in found.reason


def test_bad_clips_are_named() -> None:
    with pytest.raises(UserError, match="at least 2 frames"):
        motion_magnitude(torch.zeros(1, 3, 1, 32, 32))
    with pytest.raises(UserError, match="NaN"):
        motion_magnitude(torch.full((1, 3, 4, 32, 32), math.nan))
    with pytest.raises(UserError, match=r"expected floats in \[-1, 1\]"):
        motion_magnitude(torch.zeros(3, 4, 32, 32))
    with pytest.raises(UserError, match="reach up to 255"):
        temporal_std(torch.full((1, 3, 4, 32, 32), 255.0))
    with pytest.raises(UserError, match="one teacher clip"):
        ratio_of_motion([1.0, 2.0], [1.0])
