"""Runs of distillation for the tests: tiny teachers, real films and pictures in a folder, recipes, a progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import tiny_animatediff, tiny_dinov2, tiny_modelscope

from mcm.data.video import write_video
from mcm.recipe import Recipe

CAPTIONS = ("a red puppet walks", "a blue puppet jumps", "a puppet at night")
ADAPTER = Path("student") / "adapter_model.safetensors"


def make_material(folder: Path) -> Path:
    """animatediff/, modelscope/, dinov2/, clips/ (three films with captions, one broken), pictures/, prompts.txt."""
    tiny_animatediff(folder / "animatediff")
    tiny_modelscope(folder / "modelscope")
    tiny_dinov2(folder / "dinov2")
    rng = np.random.default_rng(0)
    for k, caption in enumerate(CAPTIONS):
        base = rng.integers(0, 256, (1, 3, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        film = np.concatenate([np.roll(base, 2 * t, axis=2) for t in range(9 + k)])
        write_video(folder / "clips" / f"film{k}.mp4", film, 8)
        (folder / "clips" / f"film{k}.txt").write_text(caption)
    (folder / "clips" / "broken.mp4").write_bytes(b"not a film")
    (folder / "clips" / "broken.txt").write_text("nothing")
    (folder / "pictures").mkdir()
    for k in range(3):
        picture = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "pictures" / f"picture{k}.png")
    (folder / "prompts.txt").write_text("a red puppet in the park\n\na blue puppet walks\n")
    return folder


def settings(place: Path, family: str = "animatediff", **changed: Any) -> dict[str, Any]:
    """A recipe as a tree; `changed` holds dotted names with two underscores: training__batch=1."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "teacher": str(place / family),
        "method": {"name": "lcm"},
        "data": {"videos": str(place / "clips"), "frames": 4},
        "student": {"rank": 2, "alpha": 4.0, "targets": "attention"},  # fewer layers, quicker tests
        "optim": {"lr": 1e-3, "warmup": 0},
        "training": {"updates": 2, "batch": 2, "seed": 5, "save_every": 1, "log_every": 1, "preview_every": 0},
        "discriminator": {"backbone": str(place / "dinov2"), "head_width": 4},
    }
    for name, value in changed.items():
        *groups, leaf = name.split("__")
        at = tree
        for group in groups:
            at = at[group]
        at[leaf] = value
    return tree


def recipe(place: Path, family: str = "animatediff", **changed: Any) -> Recipe:
    return Recipe.model_validate(settings(place, family, **changed))


def inside(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


class Told:
    """A progress that remembers the phases, and may stop the run at an update."""

    def __init__(self, stop: int | None = None) -> None:
        self.phases: list[str] = []
        self.stop = stop

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        if what not in self.phases:
            self.phases.append(what)
        if what == "distilling" and done == self.stop:
            raise KeyboardInterrupt
