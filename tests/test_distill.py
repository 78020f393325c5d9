"""Distillation from end to end on tiny teachers: what a run leaves behind, and what is refused before it begins."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import ADAPTER, CAPTIONS, Told, inside, make_material, recipe

import mcm.distill
from mcm.card import StudentCard
from mcm.data.cache import LatentSet
from mcm.distill import distill
from mcm.errors import UserError
from mcm.models.fingerprint import fingerprint
from mcm.models.student import Student
from mcm.models.video import load_video_model
from mcm.recipe import Recipe, read_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


# A whole run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, StudentCard, Told]:
    """A run of the paper's method with everything that a run writes."""
    chosen = recipe(place, method={"name": "mcm"}, training__preview_every=2, training__updates=3, training__keep=2)
    out, told = tmp_path_factory.mktemp("runs") / "whole", Told()
    card = distill(chosen, out, told)
    return chosen, out, card, told


def test_a_run_leaves_the_files_of_a_run(finished: tuple[Recipe, Path, StudentCard, Told]) -> None:
    chosen, out, card, told = finished
    assert inside(out) == {
        "recipe.yaml", "sources.json", "cache", "checkpoints", "previews", "log.jsonl", "tensorboard", "student",
    }  # fmt: skip
    assert read_recipe(out / "recipe.yaml") == chosen
    assert inside(out / "cache") == {"latents.safetensors", "index.json"}
    assert inside(out / "checkpoints") == {"update-0000002.safetensors", "update-0000003.safetensors"}
    assert inside(out / "previews") == {"update-0000002.png", "update-0000003.png"}  # the last always
    assert inside(out / "student") == {
        "card.json", "adapter_config.json", "adapter_model.safetensors", "motion.safetensors",
    }  # fmt: skip
    with Image.open(out / "previews" / "update-0000003.png") as sheet:
        assert min(sheet.size) > 16
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "motion" in line]
    assert [line["update"] for line in losses] == [1, 2, 3]
    assert all({"adversarial", "discriminator", "penalty", "rate/student"} <= line.keys() for line in losses)
    assert sum("motion ratio" in line for line in lines) == 2
    assert list((out / "tensorboard").iterdir())
    assert told.phases[0] == "loading the teacher"
    assert "encoding the clips" in told.phases
    assert told.phases[-1] == "distilling"
    assert StudentCard.load(out) == card


def test_what_was_left_out_is_written_down(place: Path, finished: tuple[Recipe, Path, StudentCard, Told]) -> None:
    (report,) = json.loads((finished[1] / "sources.json").read_text())
    assert report["where"] == str(place / "clips")
    assert (report["found"], report["used"]) == (4, 3)
    (left_out,) = report["dropped"]
    assert left_out["name"] == "broken.mp4"
    assert left_out["reason"]


def test_the_card_states_what_the_student_was_made_with(finished: tuple[Recipe, Path, StudentCard, Told]) -> None:
    chosen, _out, card, _ = finished
    teacher = load_video_model(chosen.teacher)
    assert card.name == "tiny"
    assert card.family == "animatediff"
    assert card.method == "mcm"
    assert card.teacher.name == chosen.teacher
    assert card.teacher.fingerprint == fingerprint(teacher.denoiser.network)
    assert card.scheduler == teacher.scheduler_config  # the betas have one home
    assert card.sampler == {"name": "consistency", "original_steps": 50, "sigma_data": 0.5}
    assert card.timestep_scaling == 4.0
    assert card.guidance_scale == 1.0
    assert (card.frames, card.size, card.fps) == (4, (16, 16), teacher.fps)
    assert (card.weights.kind, card.weights.rank, card.weights.alpha) == ("lora", 2, 4.0)
    assert card.provenance.recipe == chosen.to_dict()
    assert (card.provenance.updates, card.provenance.seed) == (3, 5)
    assert {"mcm", "torch", "diffusers", "python"} <= card.provenance.versions.keys()


def test_settings_of_the_recipe_reach_the_card(place: Path, tmp_path: Path) -> None:
    method = {"name": "lcm", "timestep_scaling": 7.0, "sigma_data": 0.4, "solver_steps": 20}
    chosen = recipe(
        place, method=method, data__fps=4.0, data__cache=False, training__updates=1, training__accumulation=2
    )
    card = distill(chosen, tmp_path / "run")
    assert not (tmp_path / "run" / "cache").exists()  # as asked
    assert card.timestep_scaling == 7.0
    assert card.sampler == {"name": "consistency", "original_steps": 20, "sigma_data": 0.4}
    assert card.fps == 4.0


def test_the_student_is_not_the_teacher_and_its_weights_load(finished: tuple[Recipe, Path, StudentCard, Told]) -> None:
    chosen, out, _, _ = finished
    model = load_video_model(chosen.teacher)
    z = torch.randn(1, *model.latent_shape(4), generator=torch.Generator().manual_seed(0))
    t, text = torch.tensor([499]), model.text(["a red puppet walks"])
    with torch.no_grad():
        before = model.denoiser(z, t, text).eps
        student = Student.load(model.denoiser, out / "student")
        assert torch.equal(student.teacher(z, t, text).eps, before)
        assert float((student.student(z, t, text).eps - before).abs().max()) > 1e-5


def test_the_cache_holds_the_clips(finished: tuple[Recipe, Path, StudentCard, Told]) -> None:
    _, out, _, _ = finished
    index = json.loads((out / "cache" / "index.json").read_text())
    kept = LatentSet.load(out / "cache", index["made_with"])
    assert kept.captions == list(CAPTIONS)
    assert kept.z.shape == (3, 4, 4, 8, 8)
    assert kept.frames is not None
    assert kept.frames.shape == (3, 4, 3, 16, 16)


def test_a_finished_run_is_not_done_again(
    finished: tuple[Recipe, Path, StudentCard, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, out, card, _ = finished

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run loads no teacher")

    monkeypatch.setattr(mcm.distill, "load_video_model", never)
    assert distill(chosen, out) == card
    assert distill(str(out / "recipe.yaml"), out) == card


def test_another_run_is_refused_by_name(place: Path, finished: tuple[Recipe, Path, StudentCard, Told]) -> None:
    chosen, out, _, _ = finished
    before = (out / ADAPTER).read_bytes()
    other = Recipe.model_validate(chosen.model_dump() | {"data": {**chosen.data.model_dump(), "stride": 2}})
    with pytest.raises(UserError, match=r"holds another run.*data\.stride is null there and 2 here"):
        distill(other, out)
    with pytest.raises(UserError, match=r"holds another run.*method\.name"):
        distill(recipe(place), out)
    assert (out / ADAPTER).read_bytes() == before


@pytest.mark.parametrize("family", ["animatediff", "modelscope"])
@pytest.mark.parametrize(
    ("method", "losses"),
    [
        ({"name": "lcm"}, {"consistency"}),
        ({"name": "lcm", "adversary": "video"}, {"consistency", "adversarial", "discriminator", "penalty"}),
        (
            {"name": "mcm", "adversary": "pictures", "target_decay": 0.9, "trajectory": "multi-step"},
            {"motion", "adversarial", "discriminator", "penalty"},
        ),
    ],
    ids=["lcm", "lcm+frames", "mcm+pictures"],
)
def test_methods_and_families(place: Path, tmp_path: Path, family: str, method: dict[str, Any], losses: set[str]):
    chosen = recipe(place, family, method=method, data__images=str(place / "pictures"))
    card = distill(chosen, tmp_path / "run")
    assert (card.family, card.method) == (family, method["name"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2]
    for line in lines:
        assert {k for k in line if "/" not in k and k not in ("update", "seconds per update")} == losses
    weights = load_file(tmp_path / "run" / ADAPTER)
    assert any(bool(w.any()) for name, w in weights.items() if "lora_B" in name)  # they begin at zero
    reports = json.loads((tmp_path / "run" / "sources.json").read_text())
    assert [r["what"] for r in reports] == (["pictures"] if method["name"] == "mcm" else []) + ["videos"]


def test_full_weights(place: Path, tmp_path: Path) -> None:
    card = distill(recipe(place, "modelscope", student={"kind": "full"}, training__updates=1), tmp_path / "run")
    assert (card.weights.kind, card.weights.rank) == ("full", None)
    assert (tmp_path / "run" / "student" / card.weights.file).is_file()
    assert isinstance(Student.load(load_video_model(card.teacher.name).denoiser, tmp_path / "run" / "student"), Student)


# Prompts alone -------------------------------------------------------------------------------------------------------


def test_prompts_alone(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher makes its own clips; the frames that the adversary sees are theirs, too."""
    monkeypatch.setattr(mcm.distill, "TEACHER_CLIPS", 3)
    data = {"prompts": str(place / "prompts.txt"), "frames": 4}
    chosen, out, told = recipe(place, method={"name": "mcm"}, data=data), tmp_path / "run", Told()
    distill(chosen, out, told)
    assert "the teacher makes clips" in told.phases
    index = json.loads((out / "cache" / "index.json").read_text())
    assert index["names"] == ["teacher-000000", "teacher-000001", "teacher-000002"]
    assert index["captions"] == ["a red puppet in the park", "a blue puppet walks", "a red puppet in the park"]
    kept = LatentSet.load(out / "cache", index["made_with"])
    assert not torch.equal(kept.z[0], kept.z[2])  # the same prompt, another seed
    (report,) = json.loads((out / "sources.json").read_text())
    assert (report["what"], report["used"]) == ("prompts", 2)


# What is refused -----------------------------------------------------------------------------------------------------


def refused(place: Path, out: Path, message: str, **changed: Any) -> None:
    """One line, before any training, and the place stays free."""
    told = Told()
    with pytest.raises(UserError, match=message) as error:
        distill(recipe(place, **changed), out, told)
    assert "\n" not in str(error.value)
    assert "distilling" not in told.phases
    assert not out.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"training__batch": 5}, r"training\.batch is 5, but there are only 3 clips"),
        ({"data__frames": 17}, r"frames 17.*takes 1 to 16 frames"),
        ({"data__frames": 10, "training__batch": 3}, r"training\.batch is 3, but there are only 2 clips"),
        ({"data__frames": 12}, r"clips.*0 usable.*too short"),
        ({"data__size": (18, 16)}, r"size 18 x 16.*multiples of 4"),
        ({"data__videos": "no/such/folder"}, r"no such folder.*no/such/folder"),
        ({"data__videos": "pocket:studoi"}, r"did you mean 'pocket:studio'"),
        ({"teacher": "no/such/teacher/at/all"}, r"teacher no/such/teacher"),
        ({"training__precision": "bf16"}, r"precision.*bf16.*fp32"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_said_before_training(
    place: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    refused(place, tmp_path / "run", message, **changed)


def test_a_teacher_of_no_known_family(place: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refused(place, tmp_path / "run", "FluxPipeline.*no known family.*animatediff", teacher=str(teacher))


def test_a_folder_with_other_things_is_not_touched(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"already holds other things \(thesis.txt\)"):
        distill(recipe(place), tmp_path)
    assert inside(tmp_path) == {"thesis.txt"}


def test_an_output_that_cannot_be_written(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        told = Told()
        with pytest.raises(UserError, match="file") as error:
            distill(recipe(place), out, told)
        assert "\n" not in str(error.value)
        assert told.phases == []  # said before anything is loaded
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output(place: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permission"):
            distill(recipe(place), tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_a_run_goes_on_from_a_student_of_the_same_teacher_alone(
    place: Path, finished: tuple[Recipe, Path, StudentCard, Told], tmp_path: Path
) -> None:
    _, first, _, _ = finished
    slow = recipe(place, student__start=str(first), optim__lr=1e-12)
    distill(slow, tmp_path / "second")
    began, ended = (load_file(run / ADAPTER) for run in (first, tmp_path / "second"))
    for name, weight in began.items():
        torch.testing.assert_close(ended[name], weight, atol=1e-9, rtol=0)
    assert any(weight.abs().max() > 0 for name, weight in ended.items() if "lora_B" in name)

    other = recipe(place, "modelscope", student__start=str(first))
    with pytest.raises(UserError, match="made from another teacher"):
        distill(other, tmp_path / "third")
    assert not inside(tmp_path / "third")
