"""Poses of one person over time: OpenPose's keypoints, from JSON files to the skeleton pictures that ControlNets read.

Files are OpenPose's, those that DWPose (arXiv 2307.15880) is saved in by the editors of ControlNet's world, which are
the same with hands and faces beside the body, and those of mmpose, with which DWPose was made.

The layout is OpenPose's 18 COCO points (arXiv 1812.08008): nose, neck, the right arm from its shoulder, the left arm,
the right leg from its hip, the left leg, right and left eye, right and left ear. Of several people in a frame the first
one counts.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard

import cv2
import numpy as np
import torch
from torch import Tensor

from mcm.data.pictures import PICTURE_SUFFIXES, UnreadablePicture, read_picture
from mcm.errors import UserError, nearest
from mcm.output import write_json

POINTS = 18
LAYOUT = "an OpenPose or DWPose JSON of all frames, a folder with one a frame, or a folder of skeleton pictures"
_KEY = "pose_keypoints_2d"
# OpenPose's BODY_25 has the middle of the hips at 8, and feet after the ears.
_OF_BODY_25 = (*range(8), *range(9, 19))
# By the numbers of COCO's 17 joints, with which its 133 of the whole body begin; 17 is the neck that is put after them.
_OF_COCO = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_JOINTS, _WHOLE_BODY = 17, 133
_SEEN = 0.3  # joints with a score below it are missing: networks give every joint some place
_PIXELS = 2.0  # no person is drawn within two pixels: larger coordinates are pixels, others fractions
_LARGEST = 1e6  # larger numbers are no pixels, and overflow in what is reckoned from them

# The colours go round the circle of hues; limb i has the colour of point i.
COLOURS = tuple(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / POINTS, 1, 1)) for i in range(POINTS))
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
_SIDE, _RADIUS, _DIM = 512, 4, 0.6  # ControlNet's annotator draws at 512 pixels, limbs and points 4 wide, limbs dimmer


@dataclass(frozen=True)
class Poses:
    """points: float (T, 18, 3), x to the right and y down as fractions of the canvas, and a confidence; where that is
    not above 0 the point is missing. canvas: (H, W) in pixels, None where only the fractions are known. UserError for
    points of another shape.
    """

    points: np.ndarray
    canvas: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 3 or self.points.shape[0] < 1 or self.points.shape[1:] != (POINTS, 3):
            raise UserError(f"poses of shape {self.points.shape}: expected (frames, 18, 3) with at least one frame")

    def resampled(self, frames: int) -> Self:
        """The same movement in `frames` frames, first to first and last to last.

        Between two frames a point goes straight, and is there where both have it.
        """
        place = np.linspace(0, len(self.points) - 1, frames)
        before = np.floor(place).astype(int)
        after = np.ceil(place).astype(int)
        part = (place - before)[:, None, None]
        points = self.points[before] * (1 - part) + self.points[after] * part
        points[..., 2] = np.minimum(self.points[before, :, 2], self.points[after, :, 2])
        return type(self)(points, self.canvas)

    def placed(self, size: tuple[int, int]) -> np.ndarray:
        """The points as fractions of frames of `size` (H, W), (T, 18, 3).

        The canvas fills the frame and what stands over is cut off, as pictures are fitted; one of unknown shape
        is the frame.
        """
        if self.canvas is None:
            return self.points
        canvas, frame = np.array(self.canvas[::-1], float), np.array(size[::-1], float)
        scale = (frame / canvas).max()
        points = self.points.astype(float)
        points[..., :2] = 0.5 + (points[..., :2] - 0.5) * canvas * scale / frame
        return points

    def pictures(self, frames: int, size: tuple[int, int]) -> Tensor:
        """Skeletons, float (3, frames, H, W) in [0, 1]; see `draw`."""
        drawn = draw(self.resampled(frames).placed(size), size)
        return torch.from_numpy(drawn).permute(3, 0, 1, 2).float() / 255

    def to_json(self) -> list[dict[str, Any]]:
        """OpenPose's object for every frame, with the canvas where it is known; in pixels then, else in fractions."""
        scale = np.array([*(self.canvas or (1, 1))[::-1], 1.0])
        size = {} if self.canvas is None else {"canvas_height": self.canvas[0], "canvas_width": self.canvas[1]}
        return [{"people": [{_KEY: (frame * scale).ravel().tolist()}], **size} for frame in self.points]


def draw(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Skeletons in OpenPose's colours on black, as ControlNet's annotator draws them.

    points: (N, 18, 3) in fractions of the frame, see `Poses`; missing ones, and limbs that lack an end, are left out.
    size: (H, W) in pixels; smaller ones than 512 are drawn large and reduced by areas, so that a skeleton looks the
    same in every size. Returns uint8 (N, H, W, 3), RGB.
    """
    enlarge = max(1, math.ceil(_SIDE / min(size)))
    height, width = (side * enlarge for side in size)
    radius = max(1, round(_RADIUS * min(height, width) / _SIDE))
    out = np.zeros((len(points), *size, 3), np.uint8)
    for picture, pose in zip(out, points, strict=True):
        canvas = np.zeros((height, width, 3), np.uint8)
        places = np.clip(pose[:, :2], -8, 9) * (width, height)  # far outside, opencv's whole numbers would overflow
        there = pose[:, 2] > 0
        for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
            if there[a] and there[b]:
                _limb(canvas, places[a], places[b], radius, tuple(int(_DIM * c) for c in colour))
        for place, colour in zip(places[there], np.array(COLOURS)[there].tolist(), strict=True):
            cv2.circle(canvas, _whole(place), radius, colour, thickness=-1)
        picture[:] = canvas if enlarge == 1 else cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA)
    return out


def _limb(canvas: np.ndarray, a: np.ndarray, b: np.ndarray, radius: int, colour: Sequence[int]) -> None:
    """An ellipse from a to b."""
    across, down = b - a
    half = round(math.hypot(across, down) / 2)
    angle = round(math.degrees(math.atan2(down, across)))
    polygon = cv2.ellipse2Poly(_whole((a + b) / 2), (half, radius), angle, 0, 360, 1)
    cv2.fillConvexPoly(canvas, np.asarray(polygon), colour)


def _whole(place: np.ndarray) -> tuple[int, int]:
    return round(float(place[0])), round(float(place[1]))


def read_pictures(folder: Path, frames: int, size: tuple[int, int]) -> Tensor:
    """The skeleton pictures in `folder`, in the order of their names, the nearest one for each of `frames` frames.

    Returns float (3, frames, H, W) in [0, 1]. UserError naming the picture that cannot be read.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    chosen = [found[round(place)] for place in np.linspace(0, len(found) - 1, frames)]
    known: dict[Path, Tensor] = {}
    for path in dict.fromkeys(chosen):
        try:
            known[path] = read_picture(path, size)
        except UnreadablePicture as error:
            raise UserError(f"pose {folder}: {path.name} cannot be used: {error.reason}") from error
    return torch.stack([known[path] for path in chosen], dim=1).add(1).div(2)


def read_poses(path: str | Path) -> Poses:
    """Keypoints as OpenPose and the editors of its files write them.

    path: one file with a list of frames (or one frame), or a folder of files, a frame each, in the order of their
    names. A frame is {"people": [{"pose_keypoints_2d": [x, y, confidence, ...]}, ...]} with 18 COCO or 25 BODY_25
    points, in pixels of a canvas that some frame states ("canvas_width", "canvas_height"), or as fractions of it.
    Or one file of mmpose, {"instance_info": [{"instances": [{"keypoints": [[x, y], ...], "keypoint_scores": [...]}]}]}
    with a frame each and COCO's 17 or 133 points; its canvas is to be put beside "instance_info".
    A frame without people has no points. UserError naming the file, the frame and what was expected.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    frames: list[tuple[str, dict[str, Any]]] = []
    for file in files:
        content = _read(file)
        if isinstance(content, dict) and isinstance(content.get("instance_info"), list):
            content = _of_mmpose(content)
        listed = content if isinstance(content, list) else [content]
        for number, frame in enumerate(listed):
            where = f"{file}, frame {number}" if isinstance(content, list) else str(file)
            if not isinstance(frame, dict):
                raise UserError(f'pose {where}: expected an object with "people", found a {type(frame).__name__}')
            frames.append((where, frame))
    points = np.stack([_points(where, frame) for where, frame in frames]) if frames else np.zeros((0, POINTS, 3))
    if not (points[..., 2] > 0).any():
        raise UserError(f"pose {path}: none of its {len(frames)} frames has a point with a confidence above 0")
    canvas = next((found for where, frame in frames if (found := _canvas(where, frame)) is not None), None)
    points[points[..., 2] <= 0] = 0
    if points[..., :2].max() > _PIXELS:
        if canvas is None:
            raise UserError(
                f'pose {path}: its points are in pixels, and no frame states "canvas_width" and "canvas_height": put '
                "them into the first one, or write fractions (OpenPose's --keypoint_scale 3)"
            )
        points[..., :2] /= canvas[::-1]
    return Poses(points, canvas)


def write_poses(path: str | Path, poses: Poses) -> None:
    """One JSON file of all frames, which `read_poses` reads. UserError where it cannot be written."""
    write_json(Path(path), poses.to_json())


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise UserError(f"pose {file}: its lists are nested too deep; expected {LAYOUT}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"pose {file}: cannot be read as JSON: {error}; expected {LAYOUT}") from error


def _points(where: str, frame: dict[str, Any]) -> np.ndarray:
    """The first person's points of a frame, (18, 3), in the file's units."""
    if "people" not in frame and isinstance(frame.get("instances"), list):
        return _instance(where, frame["instances"])
    if not isinstance(frame.get("people"), list):
        raise UserError(f'pose {where}: no list "people"; expected {LAYOUT}{nearest("people", frame)}')
    if not frame["people"]:
        return np.zeros((POINTS, 3))
    person = frame["people"][0]
    if not isinstance(person, dict) or not isinstance(person.get(_KEY), list):
        known = person if isinstance(person, dict) else ()
        raise UserError(f'pose {where}: its first person has no list "{_KEY}"{nearest(_KEY, known)}')
    numbers = person[_KEY]
    if not all(_number(n) for n in numbers):
        raise UserError(f'pose {where}: "{_KEY}" holds something else than numbers; expected x, y, confidence')
    if len(numbers) not in (3 * POINTS, 3 * 25):
        raise UserError(
            f'pose {where}: "{_KEY}" has {len(numbers)} numbers; expected x, y, confidence of 18 points (COCO, 54 '
            "numbers) or of 25 (BODY_25, 75 numbers)"
        )
    points = np.array(numbers, float).reshape(-1, 3)
    return points if len(points) == POINTS else points[list(_OF_BODY_25)]


def of_coco(joints: np.ndarray) -> np.ndarray:
    """COCO's 17 joints (T, 17, 3), x, y and score, as OpenPose's points (T, 18, 3): the neck is the middle of the
    shoulders, and scores below 0.3 are missing points."""
    neck = joints[:, 5:7].mean(1)
    neck[:, 2] = joints[:, 5:7, 2].min(1)
    points = np.concatenate([joints[:, :_JOINTS], neck[:, None]], 1)[:, list(_OF_COCO)]
    points[points[..., 2] < _SEEN] = 0
    points[..., 2] = points[..., 2].clip(0, 1)
    return points


def _of_mmpose(content: dict[str, Any]) -> list[Any]:
    """Its frames, the first with the canvas that is stated beside them."""
    canvas = {key: content[key] for key in ("canvas_height", "canvas_width") if key in content}
    frames = list(content["instance_info"])
    if frames and canvas and isinstance(frames[0], dict):
        frames[0] = {**canvas, **frames[0]}
    return frames


def _instance(where: str, people: list[Any]) -> np.ndarray:
    """The first of mmpose's people, (18, 3)."""
    if not people:
        return np.zeros((POINTS, 3))
    person = people[0] if isinstance(people[0], dict) else {}
    places, scores = person.get("keypoints"), person.get("keypoint_scores")
    if not isinstance(places, list) or not isinstance(scores, list) or len(places) != len(scores):
        raise UserError(f'pose {where}: its first person has no "keypoints" with as many "keypoint_scores"')
    if len(places) not in (_JOINTS, _WHOLE_BODY):
        raise UserError(
            f'pose {where}: "keypoints" has {len(places)} points; expected COCO\'s {_JOINTS}, or {_WHOLE_BODY} of the '
            "whole body"
        )
    if not all(isinstance(at, list) and len(at) == 2 and all(map(_number, at)) for at in places) or not all(
        map(_number, scores)
    ):
        raise UserError(f'pose {where}: "keypoints" holds something else than [x, y], or the scores are no numbers')
    return of_coco(np.concatenate([np.array(places, float), np.array(scores, float)[:, None]], 1)[None, :_JOINTS])[0]


def _canvas(where: str, frame: dict[str, Any]) -> tuple[int, int] | None:
    """(H, W) in pixels, where the frame states it."""
    stated = [frame.get(key) for key in ("canvas_height", "canvas_width")]
    if stated == [None, None]:
        return None
    sides = [int(side) for side in stated if _number(side) and side >= 1]
    if len(sides) < 2:
        said = " and ".join(json.dumps(side) for side in stated)
        raise UserError(f'pose {where}: "canvas_height" and "canvas_width" are {said}; expected pixels, at least 1')
    return sides[0], sides[1]


def _number(value: Any) -> TypeGuard[float]:
    """Whether it is one, not a truth value, and of a size that points and pixels have (Python reads NaN from JSON)."""
    return type(value) in (int, float) and abs(value) <= _LARGEST
