"""A folder in which everything on the pages runs for real in seconds: small recipes, few clips, tiny networks.

Commands and snippets run as they are written. What is smaller: a recipe trains one update of one clip, a teacher makes
two clips of its own, an evaluation four at its first number of steps, and the teacher beside them takes one step. With
`tiny` a recipe's teacher and backbone are random networks (tests/tiny.py), else the laboratory's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from snippets import Block, blocks, read
from tiny import tiny_controlnet
from tiny_run import make_material
from tiny_students import tiny_student, whole_teacher

import mcm.cli.distill
import mcm.distill
import mcm.evaluation.run
import mcm.prepare
import mcm.recipes
from mcm.cli import main
from mcm.data.poses import Poses, write_poses
from mcm.recipe import Recipe, apply_overrides

SMALL = {
    "training.updates": 1, "training.batch": 1, "training.preview_every": 0, "data.laboratory_clips": 2,
    "student.rank": 2, "student.alpha": 2.0, "student.targets": "attention",
}  # fmt: skip
TINY = {"teacher": "animatediff", "discriminator.backbone": "dinov2", "data.frames": 4}


def prepare(folder: Path) -> None:
    """What the pages speak of: clips/, pictures/, prompts.txt, walk.json, own.yaml, teachers/, runs/animatediff."""
    make_material(folder)  # animatediff/ and dinov2/, too
    for block in blocks("yaml", "docs/tutorial.md"):
        (folder / "own.yaml").write_text(block.text)
    points = np.random.default_rng(0).uniform(0.2, 0.8, (6, 18, 3))
    write_poses(folder / "walk.json", Poses(points))
    teacher = whole_teacher(folder / "teachers" / "animatediff", "animatediff")
    tiny_controlnet(folder / "teachers" / "openpose")
    tiny_student(folder / "runs" / "animatediff", teacher)


@contextmanager
def small(patch: pytest.MonkeyPatch, tiny: bool = True) -> Iterator[None]:
    """Inside, recipes and evaluations are small."""
    load, evaluate, prepared = mcm.recipes.load_recipe, mcm.evaluation.run.evaluate, mcm.prepare.prepare

    def small_recipe(name: str | Path) -> Recipe:
        return apply_overrides(load(name), SMALL | TINY if tiny else SMALL)

    def small_evaluation(model: Any, reference: str, **given: Any) -> Any:
        given |= {"count": 4, "steps": list(given["steps"])[:1]}
        given |= {"fvd_model": "pocket-videomae", "clip": "pocket-clip"}  # the published ones are downloads
        return evaluate(model, reference, **given)

    def small_prepare(source: str, out: Path, teacher: str, **given: Any) -> Any:
        given |= {"frames": None if given["images"] else TINY["data.frames"], "workers": 0}
        return prepared(source, out, TINY["teacher"], **given)

    with patch.context() as inside:
        if tiny:
            inside.setattr(sys.modules["mcm.prepare"], "prepare", small_prepare)
        inside.setattr(mcm.recipes, "load_recipe", small_recipe)
        inside.setattr(sys.modules["mcm.cli.distill"], "load_recipe", small_recipe)
        inside.setattr(mcm.evaluation.run, "evaluate", small_evaluation)
        inside.setattr(mcm.evaluation.run, "TEACHER_STEPS", 1)
        inside.setattr(sys.modules["mcm.distill"], "TEACHER_CLIPS", 2)
        yield


def command(words: list[str]) -> int:
    """The exit code of a line of `mcm`, in this process."""
    with pytest.raises(SystemExit) as left:
        main(words[1:])
    return int(str(left.value.code))


def run(block: Block) -> None:
    """A block as it stands, in the working directory."""
    if block.language == "python":
        exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
        return
    for words in block.commands():
        assert words[0] == "mcm", f"{block.place}: {words[0]} is run by no test"
        assert command(words) == 0, f"{block.place}: {' '.join(words)}"


def run_pages(folder: Path, *pages: str, tiny: bool = True) -> list[str]:
    """Everything on these pages that says nothing else, in order, in `folder`; what was run."""
    done = []
    with pytest.MonkeyPatch.context() as patch, small(patch, tiny):
        patch.chdir(folder)
        for page in pages:
            for block in read(page)[0]:
                if block.language in ("bash", "python") and not block.apart:
                    run(block)
                    done.append(block.place)
    return done
