"""How much a clip moves, by optical flow, and how that compares with the teacher.

Few-step students lose motion before they lose sharpness, and FVD hardly notices; the ratio of the student's
flow to the teacher's, on the same prompts and seeds, does. Flow is DIS (Kroeger et al. 2016, arXiv
1603.03590), which runs on the CPU. Flicker is no motion but may look like some to a flow, so the spread of
pixels over time is reported beside it: a student with the teacher's motion and twice its `temporal_std`
flickers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mcm.errors import UserError
from mcm.evaluation.bootstrap import Interval, ratio_interval
from mcm.evaluation.frechet import Array
from mcm.evaluation.networks import checked_videos

DIS_SIDE = 128
"""Shorter side, in pixels, below which frames are enlarged first: DIS matches 8-pixel patches from half
resolution up."""
STILL = 1e-5
"""Mean flow (fraction of the height per frame) below which a clip stands still: 1/200 pixel at 512."""


def motion_magnitude(videos: Tensor) -> Array:
    """Mean length of the optical flow in each clip, per frame, as a fraction of the frame's height.

    videos (B, 3, T, H, W) float in [-1, 1], T >= 2 -> (B,) float64. 0.01 at H = 256 is 2.56 pixels a frame;
    fractions let sizes compare. Regions without texture count as still. UserError for T < 2.
    """
    videos = _moving(videos)
    red, green, blue = videos.float().unbind(dim=1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue + 1) * 127.5
    frames = grey.round().clamp(0, 255).to(torch.uint8).cpu().numpy()  # (B, T, H, W)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.array([_clip_motion(flow, clip) for clip in frames], dtype=np.float64)


def _clip_motion(flow: Any, clip: NDArray[np.uint8]) -> float:
    """Mean flow length of frames (T, H, W) as a fraction of H; `flow` is a cv2.DISOpticalFlow."""
    height, width = clip.shape[1:]
    scale = max(1.0, DIS_SIDE / min(height, width))
    size = (round(width * scale), round(height * scale))  # OpenCV's order
    if scale > 1.0:
        frames = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in clip]
    else:
        frames = list(clip)
    # Displacements are measured in enlarged pixels; both axes end as fractions of the height.
    unit = np.array([width / size[0], height / size[1]]) / height
    flows = (flow.calc(first, second, None) for first, second in pairwise(frames))
    return float(np.mean([np.linalg.norm(field * unit, axis=-1).mean() for field in flows]))


def temporal_std(videos: Tensor) -> Array:
    """Standard deviation of each pixel over time, averaged over the clip.

    videos (B, 3, T, H, W) in [-1, 1] -> (B,) float64 in the pixels' units.
    Counts motion and flicker alike; 0 for a still clip."""
    return _moving(videos).double().std(dim=2, correction=0).mean(dim=(1, 2, 3)).cpu().numpy()


def _moving(videos: Tensor) -> Tensor:
    videos = checked_videos(videos)
    if videos.shape[2] < 2:
        raise UserError(f"motion of clips of {videos.shape[2]} frame: expected at least 2 frames")
    return videos


@dataclass(frozen=True)
class MotionRatio:
    """Student's motion over the teacher's: 1 is equal, below 1 less movement.

    interval: paired bootstrap over clips. reason: why `value` and the interval are NaN (the teacher stands
    still, so no ratio exists), else None."""

    value: float
    interval: Interval
    n: int
    reason: str | None = None


def ratio_of_motion(
    student: ArrayLike, teacher: ArrayLike, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> MotionRatio:
    """mean(student) / mean(teacher) of `motion_magnitude`s (n,), n >= 2, same prompts and seeds in order.

    The ratio of means, not the mean of ratios: a single nearly still teacher clip would rule the latter. A
    teacher without motion has no ratio: the value is NaN and `reason` says so. UserError when the lengths
    differ.
    """
    above, below = np.asarray(student, dtype=np.float64), np.asarray(teacher, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape:
        raise UserError(
            f"motion of {above.shape} student and {below.shape} teacher clips: expected one teacher clip of "
            "the same prompt and seed for each student clip"
        )
    if below.mean() < STILL:
        reason = f"the teacher stands still (mean flow {below.mean():.2g} of the height per frame)"
        return MotionRatio(float("nan"), (float("nan"), float("nan")), len(above), reason)
    interval = ratio_interval(above, below, samples, level, seed)
    return MotionRatio(float(above.mean() / below.mean()), interval, len(above))


def motion_ratio(
    student: Tensor, teacher: Tensor, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> MotionRatio:
    """`ratio_of_motion` of clips (B, 3, T, H, W) in [-1, 1], pair by pair; the two T, H, W may differ."""
    return ratio_of_motion(motion_magnitude(student), motion_magnitude(teacher), samples, level, seed)


def protocol() -> dict[str, Any]:
    """What a motion figure must state to be compared."""
    return {
        "flow": f"DIS medium, OpenCV {cv2.__version__}",
        "shorter_side_at_least": DIS_SIDE,
        "unit": "mean flow length per frame / frame height",
    }
