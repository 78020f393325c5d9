"""Is resuming exact? A run that is killed and goes on, beside one that is not, compared bit for bit.

Both are real runs in processes of their own; the second one is ended by SIGKILL, which nobody can catch, between two
checkpoints, and the same command goes on with it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mcm.errors import UserError
from mcm.output import Progress, silent
from mcm.recipe import Recipe, apply_overrides, read_recipe
from mcm.training.checkpoint import load_state
from mcm.training.trainer import checkpoints, saved_updates

# argv: recipe.yaml, the run's folder, the cache of encoded clips, the update to be killed at (0: never)
_RUN = """
import os, signal, sys
from mcm.distill import distill
def told(what, done, total, note=""):
    if what == "distilling" and done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
distill(sys.argv[1], sys.argv[2], told, sys.argv[3])
"""


@dataclass(frozen=True)
class Verdict:
    """updates: of both runs; killed_at, resumed_from: of the one that was killed; compared: tensors and numbers;
    different: the name of the first one that is not the same in both, None where resuming is exact."""

    updates: int
    killed_at: int
    resumed_from: int
    compared: int
    different: str | None

    @property
    def exact(self) -> bool:
        return self.different is None

    def __str__(self) -> str:
        what = f"killed at update {self.killed_at}, resumed from update {self.resumed_from}"
        if self.exact:
            return (
                f"resuming is exact: {what}, all {self.compared} tensors and numbers of the checkpoint of update "
                f"{self.updates} are those of the uninterrupted run, bit for bit"
            )
        return (
            f"resuming is NOT exact: {what}, and at update {self.updates} {self.different} is not as in the "
            "uninterrupted run"
        )


def verify_resume(
    recipe: Recipe | str, updates: int = 6, folder: str | Path | None = None, progress: Progress = silent
) -> Verdict:
    """Distil `recipe` for so many updates twice, once with a SIGKILL in between, and compare the last checkpoints.

    Args:
        recipe: a recipe, or the name or file of one; previews and trackers are left out, the rest is as it stands.
        updates: of each run, at least 3.
        folder: a new one for both runs, to look at them; by default they are thrown away.

    Raises:
        UserError: where the runs themselves fail, with their own line.
    """
    if isinstance(recipe, str):
        from mcm.recipes import load_recipe

        recipe = load_recipe(recipe)
    if updates < 3:
        raise UserError(f"updates is {updates}: expected at least 3, one to save, one to lose and one to do again")
    every, kill = max(1, updates // 3), updates - 1
    changes = {"updates": updates, "save_every": every, "preview_every": 0, "tracker": "none"}
    tried = apply_overrides(recipe, {f"training.{name}": value for name, value in changes.items()})
    if folder is None:
        with TemporaryDirectory(prefix="mcm-verify-") as place:
            return _verify(tried, kill, Path(place), progress)
    place = Path(folder).expanduser()
    if place.exists() and any(place.iterdir()):
        raise UserError(f"{place} is not empty: two runs are to be compared there; choose another --out")
    return _verify(tried, kill, place, progress)


def _verify(recipe: Recipe, kill: int, place: Path, progress: Progress) -> Verdict:
    file, updates = place / "recipe.yaml", recipe.training.updates
    recipe.save(file)
    assert read_recipe(file) == recipe
    whole, broken = place / "uninterrupted", place / "interrupted"
    progress("running uninterrupted", 0, 3)
    _run(file, whole)
    progress(f"running until SIGKILL at update {kill}", 1, 3)
    _run(file, broken, kill)
    resumed_from = saved_updates(broken / "checkpoints")
    progress(f"going on from update {resumed_from}", 2, 3)
    _run(file, broken)
    ends = [dict(leaves(load_state(checkpoints(run / "checkpoints")[-1]))) for run in (whole, broken)]
    progress("comparing", 3, 3)
    return Verdict(updates, kill, resumed_from, len(ends[0]), first_difference(*ends))


def _run(recipe: Path, out: Path, kill: int = 0) -> None:
    """A run in a process of its own. UserError with its last line where it ends otherwise than it shall."""
    command = [sys.executable, "-c", _RUN, str(recipe), str(out), str(recipe.parent / "cache"), str(kill)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != (-signal.SIGKILL if kill else 0):
        last = (done.stderr.strip().splitlines() or [f"it left with {done.returncode}"])[-1]
        raise UserError(f"the run to be verified failed: {last.removeprefix('mcm.errors.UserError: ')}")


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a tree of state, by dotted names."""
    if isinstance(tree, Mapping):
        inside = list(tree.items())
    elif isinstance(tree, list | tuple):
        inside = list(enumerate(tree))
    else:
        yield name, tree
        return
    for key, value in inside:
        yield from leaves(value, f"{name}.{key}" if name else str(key))


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first name whose values are not the same to the bit, or that one side lacks; None where there is none."""
    for name in [*one, *(name for name in other if name not in one)]:
        if name not in one or name not in other or not _same(one[name], other[name]):
            return name
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(_bits(one), _bits(other))
    return type(one) is type(other) and one == other


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)
