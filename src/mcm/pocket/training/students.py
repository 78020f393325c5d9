"""The students that are shipped: distilled as anyone distils, by the recipes; stored in half precision.

Adapters of rank 16 instead of the recipes' 32: half the bytes, at about the same alpha / sqrt(rank), which decides
what a rate does (arXiv 2312.03732).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mcm.card import CARD
from mcm.distill import distill
from mcm.models.student import Student
from mcm.models.video import load_video_model
from mcm.output import Progress, silent
from mcm.recipe import apply_overrides
from mcm.recipes import load_recipe

SMALL = {
    "student.rank": 16, "student.alpha": 23, "training.seed": 1, "training.updates": 200,
    "data.laboratory_clips": 512, "training.preview_every": 0,
    # As the recipes were when the shipped one was made: own clips and the discriminator from the first update on.
    "method.generated_ramp": 0.0, "method.adversarial_start": 0.0,
}  # fmt: skip
# By name: the recipe, and what is said over it.
SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "pocket-modelscope-mcm": ("pocket-modelscope", {}),
}


def fit(work: Path, name: str, progress: Progress = silent, **more: Any) -> None:
    """Distil one of them, in `work`/students; goes on where it was killed. more: settings that go over its own."""
    recipe, own = SHIPPED[name]
    changed = {**SMALL, "name": name, **own, **more}
    distill(apply_overrides(load_recipe(recipe), changed), work / "students" / name, progress)


def ship(run: Path, folder: Path) -> None:
    """Put a run's student into `folder`: its card, and its weights in half precision. The motion head stays behind, for
    nothing that samples reads it."""
    teacher = load_video_model(SHIPPED[folder.name][0])
    Student.load(teacher.denoiser, run / "student").save(folder, half=True)
    shutil.copyfile(run / "student" / CARD, folder / CARD)
