"""Distillation over several base image models, from end to end: whose clips are whose, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_look
from tiny_run import Told, inside, make_material, recipe

import mcm.distill
from mcm.data.cache import LatentSet
from mcm.distill import distill, material
from mcm.errors import UserError
from mcm.models.bases import Bases
from mcm.models.fingerprint import fingerprint
from mcm.models.video import load_video_model
from mcm.output import silent
from mcm.training.checkpoint import load_state
from mcm.training.material import Material
from mcm.training.ranks import Ranks

NAME = "animatediff-lightning"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_material(tmp_path_factory.mktemp("material"))
    tiny_look(place / "look", seed=1)
    return place


def over(place: Path, *bases: str, **changed: Any) -> Any:
    data = changed.pop("data", {"prompts": str(place / "prompts.txt"), "frames": 4})
    return recipe(place, method={"name": NAME, "bases": bases}, data=data, **changed)


def clips_of(chosen: Any, cache: Path) -> LatentSet:
    """What a run of the recipe learns from."""
    model = load_video_model(chosen.teacher)
    names = chosen.method.bases
    bases = Bases.load(names, model.denoiser) if names else None
    found, _, _ = material(chosen, model, bases, 4, model.size, cache, silent)
    assert isinstance(found, LatentSet)
    return found


def test_a_run_over_two_bases(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcm.distill, "TEACHER_CLIPS", 3)
    chosen, out = over(place, "teacher", str(place / "look"), training__updates=2), tmp_path / "run"
    card = distill(chosen, out, Told())
    assert card.teacher.fingerprint == fingerprint(load_video_model(chosen.teacher).denoiser.network)
    index = json.loads((out / "cache" / "index.json").read_text())
    assert index["names"] == [f"{base}-{i:06d}" for base in ("teacher", "look") for i in range(3)]
    assert index["captions"][:3] == index["captions"][3:]
    state = load_state(out / "checkpoints" / "update-0000002.safetensors")
    assert state["discriminator"]["bases"].shape[0] == 2
    again = LatentSet.load(out / "cache", index["made_with"])
    text = load_video_model(chosen.teacher).text
    batches = Material(again, text, bases=2)
    assert len(batches) == 3  # each base's own
    for base in (0, 1):
        got = batches([2, 0], torch.Generator(), base).z0
        assert torch.equal(got, again.z[[3 * base + 2, 3 * base]].float())
    tiny_look(place / "look", seed=2)  # another look under the same name: its clips are others
    with pytest.raises(UserError, match="bases"):
        distill(chosen, tmp_path / "second", Told(), out / "cache")
    tiny_look(place / "look", seed=1)


def test_each_bases_clips_are_made_by_the_teacher_with_that_base(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second base goes on with the seeds after the first one's, and no training seed changes any clip."""
    (tmp_path / "one.txt").write_text("a red puppet walks\n")
    look, data = str(place / "look"), {"prompts": str(tmp_path / "one.txt"), "frames": 4}

    def made(count: int, *bases: str, seed: int = 0) -> torch.Tensor:
        monkeypatch.setattr(mcm.distill, "TEACHER_CLIPS", count)
        chosen = over(place, *bases, data=data, training__seed=seed, training__batch=1)
        return clips_of(chosen, tmp_path / f"{count}-{len(bases)}-{seed}").z

    both, plain, looking = made(1, "teacher", look), made(2), made(2, look, seed=7)
    torch.testing.assert_close(both, torch.stack([plain[0], looking[1]]))
    assert (looking - plain).abs().max() > 0.05  # the same noise through another image model
    assert torch.equal(both, made(1, "teacher", look, seed=7))


def test_videos_are_all_bases_alike(place: Path, tmp_path: Path) -> None:
    data = {"videos": str(place / "clips"), "frames": 4}
    out = tmp_path / "run"
    distill(over(place, "teacher", str(place / "look"), data=data, training__updates=1), out, Told())
    index = json.loads((out / "cache" / "index.json").read_text())
    assert "bases" not in index["made_with"]  # so that a cache serves runs with and without bases
    assert len(index["names"]) == 3


def test_a_full_student_divided_among_ranks_is_refused(place: Path) -> None:
    chosen = over(place, "teacher", str(place / "look"), student={"kind": "full"})
    with pytest.raises(UserError, match=r"method\.bases.*student\.kind") as error:
        mcm.distill._check_settings(chosen, torch.device("cpu"), Ranks(0, 2))
    assert "\n" not in str(error.value)
    mcm.distill._check_settings(chosen, torch.device("cpu"), Ranks())


def test_a_base_that_is_not_there_is_one_line_before_anything_is_made(place: Path, tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(UserError, match=r"base pocket-tune-look: no such folder.*did you mean 'pocket-toon-look'"):
        distill(over(place, "teacher", "pocket-tune-look"), tmp_path / "run", told)
    assert told.phases == ["loading the teacher"]
    assert not inside(tmp_path / "run")
