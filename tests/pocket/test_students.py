"""The students that are shipped: how they are made, and that those in the package are of the teachers beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mcm.card import StudentCard
from mcm.generate import load_maker
from mcm.pocket import zoo
from mcm.pocket.training import students
from mcm.recipe import Recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("work")
    few = {"training.updates": 2, "training.batch": 2, "data.laboratory_clips": 4, "optim.warmup": 0}
    students.fit(place, "pocket-modelscope-mcm", **few)
    return place


def test_a_student_is_made_by_its_recipe_and_stored_small(work: Path, tmp_path: Path) -> None:
    run, folder = work / "students" / "pocket-modelscope-mcm", tmp_path / "pocket-modelscope-mcm"
    students.ship(run, folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "card.json",
    ]  # fmt: skip
    stored = load_file(folder / "adapter_model.safetensors")
    whole = load_file(run / "student" / "adapter_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert stored.keys() == whole.keys()
    for name, value in stored.items():
        torch.testing.assert_close(value.float(), whole[name], rtol=1e-3, atol=1e-5)
    card = StudentCard.load(folder)
    assert (card.name, card.weights.rank, card.weights.alpha) == ("pocket-modelscope-mcm", 16, 23.0)
    made = load_maker(folder)
    assert made.latents(["a person in a red shirt and blue trousers waving in a park"], [0], 1).isfinite().all()


@pytest.mark.parametrize("name", zoo.students())
def test_shipped_students_are_those_of_the_stage(name: str) -> None:
    maker = load_maker(name)  # refuses a student of another teacher
    card = StudentCard.load(zoo.ZOO / "students" / name)
    recipe, own = students.SHIPPED[name]
    assert Path(card.teacher.name).name == recipe
    assert card.provenance.recipe["method"]["name"] == "mcm"
    made_by = Recipe.model_validate(card.provenance.recipe)  # settings that came later stand as they did nothing
    for key, value in {**students.SMALL, **own}.items():
        group, leaf = key.split(".")
        assert getattr(getattr(made_by, group), leaf) == value, key
    z = maker.latents(["a person in a red shirt and blue trousers waving in a park"], [0], 4)
    assert z.isfinite().all()
    assert 0.3 < float(z.std()) < 3


def test_a_run_goes_on_from_a_shipped_student_by_its_name(tmp_path: Path) -> None:
    name = "pocket-modelscope-mcm"
    few = {"training.updates": 1, "training.batch": 2, "data.laboratory_clips": 4, "optim.warmup": 0}
    students.fit(tmp_path, name, **few, **{"student.start": name, "optim.lr": 1e-12})
    began, ended = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (zoo.ZOO / "students" / name, tmp_path / "students" / name / "student")
    )
    assert began.keys() == ended.keys()
    for key, weight in began.items():
        torch.testing.assert_close(ended[key], weight.float(), atol=1e-6, rtol=0)


def test_the_networks_take_forty_megabytes_at_most() -> None:
    assert sum(p.stat().st_size for p in zoo.ZOO.rglob("*") if p.is_file()) <= 40e6
