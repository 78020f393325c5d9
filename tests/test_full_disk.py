"""A disk that is full at any moment of a run: one clear line, nothing half-written, and the same command goes on."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Told, inside, make_material, recipe

from mcm.distill import distill
from mcm.errors import UserError
from mcm.models.adapters import LoraStudent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def full_disk(monkeypatch: pytest.MonkeyPatch, fits: Callable[[Path], bool]) -> None:
    """No file takes its final name unless it fits, as where the last write before the renaming failed."""
    rename = os.replace

    def replace(source: Any, target: Any, **how: Any) -> None:
        if not fits(Path(target)):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        rename(source, target, **how)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("file", ["recipe.yaml", "latents.safetensors", "index.json", "sources.json"])
def test_full_before_training(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    out = tmp_path / "run"
    full_disk(monkeypatch, lambda target: target.name != file)
    told = Told()
    with pytest.raises(UserError, match=file):
        distill(recipe(place), out, told)
    assert "distilling" not in told.phases
    assert not list(out.rglob(file))
    assert not [p for p in out.rglob("*") if "part" in p.name]  # nothing half-written under any name
    monkeypatch.undo()
    recipe(place).may_use(out)  # the same command may go on


def test_full_at_a_checkpoint(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    full_disk(monkeypatch, lambda target: target.name != "update-0000002.safetensors")
    with pytest.raises(UserError, match=r"cannot write the checkpoint.*No space left"):
        distill(recipe(place, training__updates=3), out)
    assert inside(out / "checkpoints") == {"update-0000001.safetensors"}  # the last good one
    assert not (out / "student").exists()
    monkeypatch.undo()
    distill(recipe(place, training__updates=3), out)
    assert inside(out / "checkpoints") == {"update-0000002.safetensors", "update-0000003.safetensors"}


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "motion.safetensors", "card.json"])
def test_full_at_the_end(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Without its card, which comes last, a student counts as unfinished; the next call writes what is missing."""
    out = tmp_path / "run"
    chosen = recipe(place, method={"name": "mcm", "adversary": "none"}, training__updates=1)
    full_disk(monkeypatch, lambda target: target.name != file)
    with pytest.raises(UserError, match=r"cannot|full"):
        distill(chosen, out)
    assert file not in inside(out / "student")
    assert "card.json" not in inside(out / "student")
    assert not [p for p in (out / "student").iterdir() if p.name.startswith(".")]
    monkeypatch.undo()
    told = Told()
    distill(chosen, out, told)
    assert "distilling" not in told.phases  # the last checkpoint is the whole training
    assert {"card.json", "adapter_model.safetensors", "motion.safetensors"} <= inside(out / "student")


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a refusal by the kernel itself, in the middle of writing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "file"), [(5_000, "latents.safetensors"), (60_000, "update-0000001.safetensors")])
def test_refused_in_the_middle_of_a_file(place: Path, tmp_path: Path, size: int, file: str) -> None:
    out = tmp_path / "run"
    with limited(size), pytest.raises(UserError, match=rf"{file}.*File too large"):
        distill(recipe(place, data__cache=True), out)
    assert not [p for p in out.rglob("*") if file.split(".")[0] in p.name]  # under no name, not even a hidden one


def test_refused_in_the_middle_of_the_motion_head(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors' own writer raises SafetensorError then, which is no OSError."""
    out = tmp_path / "run"
    save = LoraStudent.save
    narrow = ExitStack()

    def save_and_fill(*args: Any, **how: Any) -> None:
        save(*args, **how)
        narrow.enter_context(limited(500))

    monkeypatch.setattr(LoraStudent, "save", save_and_fill)
    with narrow, pytest.raises(UserError, match="motion"):
        distill(recipe(place, method={"name": "mcm", "adversary": "none"}, training__updates=1), out)
    assert inside(out / "student") == {"adapter_config.json", "adapter_model.safetensors"}
