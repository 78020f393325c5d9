"""An endless, seeded, captioned world of puppets that act in scenes.

A clip is a pure function of (split, index): the same numbers give the same film on every machine. Combinations of
(action, top, bottom, scene) are divided once and for all: one in ten is held out and appears in no training split,
so that every prompt of `held_out_prompts` asks for something no model has seen together.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcm.errors import one_of
from mcm.pocket.puppet import ACTIONS, joints, phases

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SCENES = ("park", "beach", "street", "night")
CAMERAS = ("still", "left", "right")
STYLES = ("studio", "toon", "relief")
DOMAINS = ("broadcast", *STYLES)

# What can be asked of a clip, and how many answers there are.
QUESTIONS: dict[str, int] = {
    "action": len(ACTIONS), "top": len(COLOURS), "bottom": len(COLOURS), "scene": len(SCENES), "camera": len(CAMERAS),
}  # fmt: skip

DOING = {
    "walk": "walking", "jump": "jumping", "wave": "waving", "squat": "squatting", "kick": "kicking", "bow": "bowing",
}  # fmt: skip
_WHERE = {"park": "in a park", "beach": "on a beach", "street": "in a street", "night": "at night"}
_CAMERA = {"still": "", "left": ", the camera pans left", "right": ", the camera pans right"}


@dataclass(frozen=True)
class Spec:
    """One clip: what its caption says, and what it leaves open (start phase, speed, place, size, facing)."""

    action: str
    top: str
    bottom: str
    scene: str
    camera: str
    phase: float
    cycles: float
    facing: int
    x: float
    height: float
    seed: int

    @property
    def caption(self) -> str:
        return (
            f"a person in a {self.top} shirt and {self.bottom} trousers {DOING[self.action]} "
            f"{_WHERE[self.scene]}{_CAMERA[self.camera]}"
        )

    @property
    def labels(self) -> dict[str, int]:
        """The answers to `QUESTIONS`, as class numbers."""
        return {
            "action": list(ACTIONS).index(self.action), "top": COLOURS.index(self.top),
            "bottom": COLOURS.index(self.bottom), "scene": SCENES.index(self.scene),
            "camera": CAMERAS.index(self.camera),
        }  # fmt: skip


def _mark(combination: tuple[str, str, str, str]) -> bytes:
    return hashlib.sha256("/".join(combination).encode()).digest()


_ALL = list(itertools.product(ACTIONS, COLOURS, COLOURS, SCENES))
TRAIN_COMBINATIONS = [c for c in _ALL if _mark(c)[0] >= 26]  # nine in ten
# In the marks' order, so that any first few of them are a mixture.
HELD_OUT_COMBINATIONS = sorted((c for c in _ALL if _mark(c)[0] < 26), key=lambda c: _mark(c)[1:])
SPLITS = ("train", "student", "pictures", "reference", "judge")


def spec(split: str, index: int) -> Spec:
    """The clip number `index` of a split.

    Splits: "train" (the teachers and the other networks), "student" (what students are distilled on), "pictures"
    (picture sets), "reference" (what samples are compared with: same combinations as the held-out prompts, in the
    same order), "judge" (the judge's own training clips, every combination).

    Raises:
        UserError: for an unknown split.
    """
    if split not in SPLITS:
        raise one_of("split of the pocket world", split, SPLITS)
    rng = np.random.default_rng([SPLITS.index(split), index])
    if split == "reference":
        combination = HELD_OUT_COMBINATIONS[index % len(HELD_OUT_COMBINATIONS)]
        camera = CAMERAS[(index // len(HELD_OUT_COMBINATIONS)) % len(CAMERAS)]
    else:
        table = _ALL if split == "judge" else TRAIN_COMBINATIONS
        combination = table[rng.integers(len(table))]
        camera = CAMERAS[rng.integers(len(CAMERAS))]
    action, top, bottom, scene = combination
    return Spec(
        action, top, bottom, scene, camera,
        phase=float(rng.uniform(-0.4, 0.4)),  # a clip begins about where its action does, and shows all of it once
        cycles=float(rng.uniform(0.95, 1.1)),
        facing=int(rng.choice([-1, 1])),
        x=float(rng.uniform(-0.07, 0.07)),
        height=float(rng.uniform(0.74, 0.82)),
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


def held_out_prompts(count: int = 256) -> list[str]:
    """Captions of combinations that no training clip shows; prompt i belongs to reference clip i."""
    return [spec("reference", i).caption for i in range(count)]


def one_of_each(prompts: list[str]) -> list[int]:
    """The number of the first prompt of every action that there is."""
    firsts = [next((i for i, p in enumerate(prompts) if doing in p), None) for doing in DOING.values()]
    return [i for i in firsts if i is not None]


class Rendered(NamedTuple):
    """Clips of the world: video (B, 3, T, H, W) in [-1, 1]; keypoints (B, T, 18, 2) as (x, y) in pixels."""

    video: Tensor
    keypoints: Tensor


def film(
    specs: list[Spec], domain: str, size: int = 64, frames: int = 8, only: list[int] | None = None
) -> Rendered:
    """Render clips in a domain: "broadcast" (what web video looks like) or a picture style.

    only: of each clip this frame alone, rendered as a clip of one frame.

    Raises:
        UserError: for an unknown domain.
    """
    from mcm.pocket.broadcast import broadcast
    from mcm.pocket.render import render

    if domain not in DOMAINS:
        raise one_of("domain of the pocket world", domain, DOMAINS)
    keypoints, moments = stage(specs, frames), None
    if only is not None:
        each = torch.arange(len(specs))
        keypoints = keypoints[each, only][:, None]
        moments = torch.tensor(only)[:, None] / frames
    video = render(specs, keypoints, "plain" if domain == "broadcast" else domain, size, moments)
    if domain == "broadcast":
        video = broadcast(video, [s.seed for s in specs])
    return Rendered(video.permute(0, 4, 1, 2, 3).mul(2).sub(1).contiguous(), keypoints * size)


def stage(specs: list[Spec], frames: int) -> Tensor:
    """Exact keypoints of the clips, (B, T, 18, 2): (x right, y down) as fractions of the frame's side."""
    start = torch.tensor([s.phase for s in specs])
    cycles = torch.tensor([s.cycles for s in specs])
    facing = torch.tensor([float(s.facing) for s in specs])
    phase = phases(start, cycles, frames)
    points = torch.empty(len(specs), frames, 18, 2)
    for i, s in enumerate(specs):
        points[i] = joints(ACTIONS[s.action](phase[i]), facing[i])
    moment = torch.arange(frames, dtype=torch.float32) / max(frames - 1, 1) - 0.5
    travel = torch.tensor([0.22 * s.facing if s.action == "walk" else 0.0 for s in specs])
    height = torch.tensor([s.height for s in specs])[:, None, None]
    x = 0.5 + torch.tensor([s.x for s in specs])[:, None] + travel[:, None] * moment
    ground = 0.93
    return torch.stack([x[..., None] + points[..., 0] * height, ground - points[..., 1] * height], dim=-1)
