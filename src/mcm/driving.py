"""Poses from a driving video: what the person in a film does, for a ControlNet to make another one do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mcm.data.film import Film
from mcm.data.poses import Poses, of_coco
from mcm.data.readers import VIDEO_SUFFIXES
from mcm.data.video import UnreadableVideo, probe, read_clip
from mcm.errors import UserError
from mcm.models.keypoints import PERSON_DETECTOR, POSE_NETWORK, WHOLE_FRAME, PersonDetector, PoseNetwork
from mcm.output import Progress, silent

LONGEST = 960  # pixels of a side that the networks are shown


def poses_of_film(
    film: str | Path,
    frames: int,
    pose_network: str | Path | None = None,
    pose_detector: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Poses:
    """The movement of the person who is largest in a film, in `frames` poses spread evenly from its first frame to its
    last.

    pose_network: a ViTPose, pose_detector: what finds the person (RT-DETR, D-FINE), each a folder or hub id; "none" for
    the latter: the person fills the frame. Default the published ones. UserError where the film cannot be read, nobody
    is seen in it, or a network is missing.
    """
    if frames < 1:
        raise UserError(f"{frames} poses: expected at least 1")
    path = Path(film).expanduser()
    try:
        info = probe(path, count=True)
        with Film(path) as opened:
            size = _fitted(opened.upright())
        steps = max(1, info.frames - 1)
        rate = info.fps * max(1, frames - 1) / steps
        clip = read_clip(path, frames, size, fps=rate).transpose(0, 1)
    except UnreadableVideo as error:
        raise UserError(f"pose {film}: cannot be used as a driving video: {error.reason}") from error
    reader = PoseNetwork(pose_network or POSE_NETWORK, device)
    progress("reading the poses", 0, frames)
    boxes = np.tile(np.array([0.0, 0.0, size[1] - 1.0, size[0] - 1.0]), (frames, 1))
    if str(pose_detector) != WHOLE_FRAME:
        boxes = PersonDetector(pose_detector or PERSON_DETECTOR, device)(clip)
    points = of_coco(reader(clip, boxes))
    progress("reading the poses", frames, frames)
    if not (points[..., 2] > 0).any():
        raise UserError(f"pose {film}: nobody is seen in its {frames} frames")
    points[..., :2] /= [size[1], size[0]]
    return Poses(points, size)


def is_film(pose: str | Path | Poses) -> bool:
    """Whether it is a file that is called as films are."""
    if isinstance(pose, Poses):
        return False
    path = Path(pose).expanduser()
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W), made smaller where a side is longer than `LONGEST`."""
    scale = min(1.0, LONGEST / max(size))
    height, width = (max(2, round(side * scale)) for side in size)
    return height, width
