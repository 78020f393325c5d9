"""Recipes: strict, typed, changed by dotted names, the same after a trip through a file."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from mcm.errors import UserError
from mcm.recipe import DataConfig, MethodConfig, Recipe, apply_overrides, read_recipe
from mcm.recipes import load_recipe, recipes
from mcm.settings import expected, settings


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(name="r", teacher="t", data=DataConfig(videos="clips"))


def changed(recipe: Recipe, **changes: str) -> Recipe:
    return apply_overrides(recipe, {key.replace("__", "."): value for key, value in changes.items()})


def test_texts_become_the_type_of_their_setting(recipe: Recipe) -> None:
    new = apply_overrides(
        recipe,
        {
            "optim.lr": "3e-4",  # PyYAML would leave it a text
            "optim.betas": "0.5, 0.9",
            "training.updates": "7",
            "data.cache": "false",
            "data.size": "64x48",
            "data.videos": "2024",  # a folder's name, not a number
            "data.images": "none",
            "training.preview-prompts": '["a man, waving", "b"]',
            "method.target_decay": "0.95",
        },
    )
    assert new.optim.lr == 3e-4
    assert new.optim.betas == (0.5, 0.9)
    assert new.training.updates == 7
    assert new.data.cache is False
    assert new.data.size == (64, 48)
    assert new.data.videos == "2024"
    assert new.data.images is None
    assert new.training.preview_prompts == ("a man, waving", "b")
    assert new.method.target_decay == 0.95
    assert recipe.optim.lr != 3e-4, "the given recipe must not change"


def test_a_square_size_may_be_one_number(recipe: Recipe) -> None:
    assert changed(recipe, data__size="64").data.size == (64, 64)
    assert apply_overrides(recipe, {"data.size": 64}).data.size == (64, 64)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("optim.lrr", "optim.lr"),
        ("lr", "optim.lr"),
        ("training.lr", "optim.lr"),
        ("method.guidence_min", "method.guidance_min"),
        ("optm.clip", "optim.clip"),
    ],
)
def test_unknown_settings_name_the_nearest(recipe: Recipe, key: str, near: str) -> None:
    with pytest.raises(UserError) as error:
        apply_overrides(recipe, {key: "1"})
    assert str(error.value) == f'unknown setting "{key}": did you mean "{near}"?'


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim.lr", "abc", 'setting "optim.lr": expected a number above 0, got "abc"'),
        ("optim.lr", "-1", 'setting "optim.lr": expected a number above 0, got "-1"'),
        ("optim.lr", "nan", 'setting "optim.lr": expected a number above 0, got "nan"'),
        ("optim.lr", "none", 'setting "optim.lr": expected a number above 0, got "none"'),
        ("training.updates", "8.5", 'setting "training.updates": expected a whole number of at least 1'),
        ("method.generated_probability", "1.5", "expected a number from 0 to 1"),
        ("optim.schedule", "cos", 'setting "optim.schedule": expected one of cosine, constant, got "cos"'),
        ("data.size", "64x", 'setting "data.size": expected HEIGHTxWIDTH, or none, got "64x"'),
        ("data.size", "0x8", "data.size is 0x8"),
        ("data.cache", "perhaps", "expected true or false"),
        ("optim.betas", "0.9", "expected two numbers with a comma between them"),
        ("optim.betas", "0.9,2", "optim.betas are 0.9 and 2"),
        ("optim", "1", '"optim" is a group of settings: expected one of optim.name,'),
        ("method.guidance_min", "99", "the smallest may not exceed the largest"),
        ("method.adversary", "pictures", "set data.images (--images)"),
        ("data.videos", "none", "nothing to learn from"),
    ],
)
def test_wrong_values_are_one_line_that_says_what_was_expected(
    recipe: Recipe, key: str, value: str, words: str
) -> None:
    with pytest.raises(UserError) as error:
        apply_overrides(recipe, {key: value})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_stride_and_fps_exclude_each_other(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="give one of them"):
        changed(recipe, data__stride="2", data__fps="8")


def test_every_setting_says_what_it_is_and_may_be() -> None:
    for name, field in settings(Recipe):
        assert field.description, name
        assert expected(field), name


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_recipe_survives_its_file(recipe: Recipe, tmp_path: Path, suffix: str) -> None:
    new = apply_overrides(
        recipe, {"optim.lr": 1e-5, "data.size": (8, 16), "training.preview_prompts": ("a: b", "ü # 1")}
    )
    path = tmp_path / f"r{suffix}"
    text = new.to_yaml() if suffix == ".yaml" else json.dumps(new.to_dict())
    path.write_text(text, encoding="utf-8")
    assert read_recipe(path) == new


def test_files_are_as_strict_as_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("teacher: t\ndata: {videos: clips}\noptim: {lr: 3e-4}\n")
    assert read_recipe(path).optim.lr == 3e-4
    assert read_recipe(path).name == "mine"
    for text, words in {
        "teacher: t\ndata: {videos: v}\noptim: {lrr: 1}\n": 'unknown setting "optim.lrr": did you mean',
        "techer: t\ndata: {videos: v}\n": 'unknown setting "techer": did you mean "teacher"? (and 1 more)',
        "data: {videos: v}\n": 'the setting "teacher" is missing',
        "teacher: t\noptim: 3\ndata: {videos: v}\n": 'setting "optim": expected a group, got 3',
        "teacher: t\ndata: {videos: [}\n": "cannot be read as yaml",
        "- 1\n": "is no recipe",
        "": "is no recipe",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError) as error:
            read_recipe(path)
        assert words in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="No such file"):
        read_recipe(tmp_path / "other.yaml")


def test_recipes_go_by_their_files_names(tmp_path: Path, recipe: Recipe) -> None:
    assert {"pocket-animatediff", "pocket-modelscope"} <= recipes().keys()
    for name, about in recipes().items():
        if name.startswith("pocket-"):
            assert load_recipe(name).teacher == name
        assert about
    with pytest.raises(UserError, match=r"did you mean 'pocket-modelscope'\?"):
        load_recipe("pocket-modelscop")
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path) == recipe, "a run's folder is a recipe too"


def test_settings_cannot_be_changed_in_place(recipe: Recipe) -> None:
    with pytest.raises(ValidationError):
        recipe.optim.lr = 1.0


def test_a_run_keeps_its_folder(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    assert not recipe.may_use(folder)
    assert not folder.exists(), "asking makes nothing"
    assert not recipe.claim(folder)
    assert read_recipe(folder / "recipe.yaml") == recipe
    other = changed(recipe, optim__lr="1e-3")
    assert not other.may_use(folder), "a run that made nothing yet is in nobody's way"
    (folder / "log.jsonl").write_text("")
    assert recipe.claim(folder)
    with pytest.raises(UserError, match=r"holds another run \(optim.lr is 5e-06 there and 0.001 here\)"):
        other.claim(folder)
    assert read_recipe(folder / "recipe.yaml") == recipe


def test_a_run_goes_on_where_its_file_is_older_than_a_setting(recipe: Recipe, tmp_path: Path) -> None:
    recipe.claim(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "recipe.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "adversarial_rate" not in line))
    assert recipe.may_use(tmp_path)
    with pytest.raises(UserError, match=r"adversarial_rate is 1\.0 there and 0\.5 here"):
        apply_overrides(recipe, {"method.adversarial_rate": 0.5}).may_use(tmp_path)


def test_a_run_takes_no_folder_of_other_things(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    assert not recipe.may_use(tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"already holds other things \(photo.jpg\)"):
        recipe.claim(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        recipe.claim(tmp_path / "photo.jpg")
    with pytest.raises(UserError, match=r"cannot write .*photo.jpg/run: .* is a file"):
        recipe.claim(tmp_path / "photo.jpg" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "photo.jpg"]


def test_symbols_and_defaults_are_those_of_the_methods(recipe: Recipe) -> None:
    from mcm.methods import methods

    for name, kind in methods().items():
        config = MethodConfig(name=name)
        method = config.build()
        assert type(method) is kind
        symbols = {field.name for field in fields(kind)}
        assert symbols == set(MethodConfig.model_fields) - {"name"}
        plain = kind(**kind.own_defaults)
        assert {s: getattr(plain, s) for s in symbols} == config.model_dump(exclude={"name"})


def test_another_method_brings_its_own_defaults(recipe: Recipe) -> None:
    baseline = changed(recipe, method__name="lcm", method__huber_c="0.01")
    assert (baseline.method.motion, baseline.method.adversary) == ("raw", "none")
    assert (baseline.method.generated_probability, baseline.method.huber_c) == (0.0, 0.01)
    assert changed(recipe, method__name="lcm", method__adversary="video").method.adversary == "video"
    back = changed(baseline, method__name="mcm")
    assert (back.method.motion, back.method.adversary, back.method.huber_c) == ("learnable", "video", 0.01)
    with pytest.raises(UserError, match=r"unknown method 'mcn'.*did you mean 'mcm'"):
        changed(recipe, method__name="mcn")
