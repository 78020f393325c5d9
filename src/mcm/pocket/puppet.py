"""The articulated puppet: joint angles of every action, and forward kinematics to exact 2-D keypoints.

Lengths are fractions of the puppet's height, y points up and the ground is y = 0; `joints` returns the 18 points
of the OpenPose (COCO) layout in these units. An angle is measured from "straight down", positive towards the side
the puppet faces; elbow and knee angles are relative to the upper limb.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

THIGH, SHIN, TORSO, UPPER_ARM, FOREARM = 0.235, 0.235, 0.29, 0.165, 0.15
NECK, HEAD_RADIUS, SHOULDER, HIP = 0.035, 0.095, 0.085, 0.05

KEYPOINTS = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip


class Pose(NamedTuple):
    """Joint angles in radians and the height of a jump in body heights; every field has the shape of the phase."""

    lean: Tensor
    arm_right: Tensor
    elbow_right: Tensor
    arm_left: Tensor
    elbow_left: Tensor
    hip_right: Tensor
    knee_right: Tensor
    hip_left: Tensor
    knee_left: Tensor
    lift: Tensor


def _pose(phase: Tensor, **angles: Tensor | float) -> Pose:
    zero = torch.zeros_like(phase)
    rest: dict[str, Tensor] = dict.fromkeys(Pose._fields, zero)
    rest |= {"arm_right": zero - 0.16, "arm_left": zero + 0.16, "hip_right": zero - 0.06, "hip_left": zero + 0.06}
    return Pose(**(rest | {name: zero + value for name, value in angles.items()}))


def _walk(phase: Tensor) -> Pose:
    swing = torch.sin(phase)
    return _pose(
        phase, lean=0.06, hip_right=0.6 * swing, hip_left=-0.6 * swing,
        knee_right=-0.75 * torch.cos(phase).clamp(min=0), knee_left=-0.75 * (-torch.cos(phase)).clamp(min=0),
        arm_right=-0.7 * swing, arm_left=0.7 * swing, elbow_right=0.35, elbow_left=0.35,
    )  # fmt: skip


def _jump(phase: Tensor) -> Pose:
    up = torch.sin(phase).clamp(min=0)
    crouch = (-torch.sin(phase)).clamp(min=0)
    return _pose(
        phase, lift=0.17 * up, arm_right=-0.2 - 2.4 * up, arm_left=0.2 + 2.4 * up,
        hip_right=-0.1 - 0.35 * up + 0.5 * crouch, hip_left=0.1 + 0.35 * up + 0.5 * crouch,
        knee_right=-0.9 * crouch, knee_left=-0.9 * crouch, lean=0.15 * crouch,
    )  # fmt: skip


def _wave(phase: Tensor) -> Pose:
    return _pose(phase, arm_left=2.2, elbow_left=0.45 + 0.75 * torch.sin(phase))


def _squat(phase: Tensor) -> Pose:
    down = 0.5 - 0.5 * torch.cos(phase)
    return _pose(
        phase, hip_right=1.45 * down - 0.06, hip_left=1.45 * down + 0.06, knee_right=-2.1 * down,
        knee_left=-2.1 * down, lean=0.35 * down, arm_right=1.45 * down, arm_left=1.45 * down + 0.1,
    )  # fmt: skip


def _kick(phase: Tensor) -> Pose:
    out = 0.5 - 0.5 * torch.cos(phase)
    return _pose(
        phase, hip_right=1.6 * out - 0.06, knee_right=-0.9 * out * (1 - out), lean=-0.22 * out,
        arm_right=-0.16 - 0.9 * out, arm_left=0.16 + 0.5 * out,
    )  # fmt: skip


def _bow(phase: Tensor) -> Pose:
    down = 0.5 - 0.5 * torch.cos(phase)
    return _pose(phase, lean=1.35 * down, arm_right=0.5 * down - 0.1, arm_left=0.5 * down + 0.1)


ACTIONS: dict[str, Callable[[Tensor], Pose]] = {
    "walk": _walk, "jump": _jump, "wave": _wave, "squat": _squat, "kick": _kick, "bow": _bow,
}  # fmt: skip


def joints(pose: Pose, facing: Tensor) -> Tensor:
    """Forward kinematics: the 18 keypoints, shape `pose.lean.shape + (18, 2)`, as (x, y) in body heights.

    The lower of the two feet stands on the ground (y = 0), plus the pose's lift; x = 0 is the middle of the hips.

    Args:
        facing: +1 (to the right) or -1, broadcastable to the pose's shape.
    """

    def towards(angle: Tensor, length: float) -> Tensor:
        return torch.stack([torch.sin(angle) * length, -torch.cos(angle) * length], dim=-1)

    def offset(x: Tensor | float, y: Tensor | float) -> Tensor:
        zero = torch.zeros_like(pose.lean)
        return torch.stack([zero + x, zero + y], dim=-1)

    def limb(root: Tensor, first: Tensor, second: Tensor, lengths: tuple[float, float]) -> tuple[Tensor, Tensor]:
        middle = root + towards(first, lengths[0])
        return middle, middle + towards(first + second, lengths[1])

    hip_right, hip_left = offset(-HIP, 0.0), offset(HIP, 0.0)
    knee_right, ankle_right = limb(hip_right, pose.hip_right, pose.knee_right, (THIGH, SHIN))
    knee_left, ankle_left = limb(hip_left, pose.hip_left, pose.knee_left, (THIGH, SHIN))
    up = torch.stack([torch.sin(pose.lean), torch.cos(pose.lean)], dim=-1)
    across = torch.stack([torch.cos(pose.lean), -torch.sin(pose.lean)], dim=-1)
    neck = up * TORSO
    head = neck + up * (NECK + HEAD_RADIUS)
    shoulder_right, shoulder_left = neck - across * SHOULDER - up * 0.02, neck + across * SHOULDER - up * 0.02
    elbow_right, wrist_right = limb(shoulder_right, pose.arm_right, pose.elbow_right, (UPPER_ARM, FOREARM))
    elbow_left, wrist_left = limb(shoulder_left, pose.arm_left, pose.elbow_left, (UPPER_ARM, FOREARM))
    nose = head + across * HEAD_RADIUS * 0.55
    eye_right, eye_left = head + up * 0.03 + across * 0.015, head + up * 0.03 + across * 0.06
    ear_right, ear_left = head - across * 0.06, head - across * 0.03
    points = torch.stack(
        [
            nose, neck, shoulder_right, elbow_right, wrist_right, shoulder_left, elbow_left, wrist_left,
            hip_right, knee_right, ankle_right, hip_left, knee_left, ankle_left,
            eye_right, eye_left, ear_right, ear_left,
        ],
        dim=-2,
    )  # fmt: skip
    lowest = torch.minimum(ankle_right[..., 1], ankle_left[..., 1])
    rise = torch.stack([torch.zeros_like(lowest), pose.lift - lowest], dim=-1)
    points = points + rise.unsqueeze(-2)
    mirror = torch.stack([facing + torch.zeros_like(pose.lean), torch.ones_like(pose.lean)], dim=-1)
    return points * mirror.unsqueeze(-2)


def phases(start: Tensor, cycles: Tensor, frames: int) -> Tensor:
    """Phase of every frame, (B, T): `cycles` whole actions are done over the clip, beginning at `start` radians."""
    moment = torch.arange(frames, dtype=torch.float32) / frames
    return start[:, None] + 2 * math.pi * cycles[:, None] * moment
