"""Distillation from end to end on tiny teachers: real films, a real run folder, kills, full disks, wrong settings."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import tiny_animatediff, tiny_dinov2, tiny_modelscope

import mcm.distill
from mcm.card import StudentCard, fingerprint
from mcm.data.cache import LatentSet
from mcm.data.video import write_video
from mcm.distill import distill
from mcm.errors import UserError
from mcm.models.student import Student
from mcm.models.video import load_video_model
from mcm.recipe import Recipe, read_recipe

ROOT = Path(__file__).parent.parent
CAPTIONS = ("a red puppet walks", "a blue puppet jumps", "a puppet at night")
ADAPTER = Path("student") / "adapter_model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """animatediff/, modelscope/, dinov2/, clips/ (three films with captions and a broken one), pictures/, prompts."""
    folder = tmp_path_factory.mktemp("material")
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
        "student": {"rank": 2, "alpha": 4.0},
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


# A whole run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, StudentCard, Told]:
    """A run of the paper's method with everything that a run writes."""
    chosen = recipe(place, method={"name": "mcm"}, training__preview_every=1, training__updates=3, training__keep=2)
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
    assert inside(out / "previews") == {f"update-000000{u}.png" for u in (1, 2, 3)}
    assert inside(out / "student") == {
        "card.json", "adapter_config.json", "adapter_model.safetensors", "motion.safetensors",
    }  # fmt: skip
    with Image.open(out / "previews" / "update-0000003.png") as sheet:
        assert min(sheet.size) > 16
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "motion" in line]
    assert [line["update"] for line in losses] == [1, 2, 3]
    assert all({"adversarial", "discriminator", "penalty", "rate/student"} <= line.keys() for line in losses)
    assert sum("motion ratio" in line for line in lines) == 3
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
    assert card.teacher.fingerprint == fingerprint(teacher.denoiser.network.config)  # pyright: ignore[reportArgumentType]
    assert card.scheduler == teacher.scheduler_config  # the betas have one home
    assert card.sampler == {"name": "consistency", "original_steps": 50, "sigma_data": 0.5}
    assert card.timestep_scaling == 4.0
    assert card.guidance_scale == 1.0
    assert (card.frames, card.size, card.fps) == (4, (16, 16), teacher.fps)
    assert (card.weights.kind, card.weights.rank, card.weights.alpha) == ("lora", 2, 4.0)
    assert card.provenance.recipe == chosen.to_dict()
    assert (card.provenance.updates, card.provenance.seed) == (3, 5)
    assert {"mcm", "torch", "diffusers", "python"} <= card.provenance.versions.keys()


def test_settings_of_the_method_reach_the_card(place: Path, tmp_path: Path) -> None:
    method = {"name": "lcm", "timestep_scaling": 7.0, "sigma_data": 0.4, "solver_steps": 20}
    chosen = recipe(place, method=method, data__fps=4.0, training__updates=1, training__accumulation=2)
    card = distill(chosen, tmp_path / "run")
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


# Going on ------------------------------------------------------------------------------------------------------------

METHOD = {"name": "mcm", "target_decay": 0.9}
UPDATES = 12

RUN = """
import json, sys
from mcm.distill import distill
from mcm.recipe import Recipe
distill(Recipe.model_validate(json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.fixture(scope="module")
def uninterrupted(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    distill(recipe(place, method=METHOD, training__updates=UPDATES), out)
    return {**load_file(out / ADAPTER), **load_file(out / "student" / "motion.safetensors")}


def check_same(out: Path, wanted: dict[str, torch.Tensor]) -> None:
    found = {**load_file(out / ADAPTER), **load_file(out / "student" / "motion.safetensors")}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def started(place: Path, out: Path) -> subprocess.Popen[bytes]:
    tree = json.dumps(settings(place, method=METHOD, training__updates=UPDATES))
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-c", RUN, tree, str(out)], env=environment)


def test_killed_and_started_again_ends_as_if_nothing_had_been(
    place: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    out = tmp_path / "run"
    process = started(place, out)
    try:
        until = time.monotonic() + 200
        while not (out / "checkpoints" / "update-0000002.safetensors").exists():
            assert process.poll() is None, "the run ended before its second checkpoint"
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "student").exists()
    reached = max(int(p.stem.removeprefix("update-")) for p in (out / "checkpoints").glob("update-*"))
    assert 2 <= reached < UPDATES

    second = started(place, out)
    assert second.wait(timeout=200) == 0
    check_same(out, uninterrupted)
    updates = [json.loads(line)["update"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert updates == list(range(1, UPDATES + 1))  # neither lost nor told twice


def test_interrupted_by_hand_goes_on_with_the_same_cache(
    place: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    out = tmp_path / "run"
    chosen = recipe(place, method=METHOD, training__updates=UPDATES, training__save_every=100)
    with pytest.raises(KeyboardInterrupt):
        distill(chosen, out, Told(stop=5))
    assert inside(out / "checkpoints") == {"update-0000005.safetensors"}
    sources = (out / "sources.json").read_text()
    told = Told()
    distill(chosen, out, told)
    assert "encoding the clips" not in told.phases
    check_same(out, uninterrupted)
    assert (out / "sources.json").read_text() == sources  # what was left out stays on record


def test_settings_may_not_change_between_the_parts_of_a_run(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        distill(recipe(place, data__stride=1), out, Told(stop=1))
    cache = (out / "cache" / "latents.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"another run.*data\.stride is 1 there and 2 here"):
        distill(recipe(place, data__stride=2), out)
    assert (out / "cache" / "latents.safetensors").read_bytes() == cache


def test_a_cache_of_other_clips_is_not_taken(place: Path, tmp_path: Path) -> None:
    """The recipe is the same, but the cache under it was exchanged."""
    out = tmp_path / "run"
    for folder, stride in ((out, 1), (tmp_path / "other", 2)):
        with pytest.raises(KeyboardInterrupt):
            distill(recipe(place, data__stride=stride), folder, Told(stop=1))
    shutil.rmtree(out / "cache")
    shutil.copytree(tmp_path / "other" / "cache", out / "cache")
    with pytest.raises(UserError, match=r"latents.*are others: made with stride 2, asked for 1"):
        distill(recipe(place, data__stride=1), out)


def test_without_a_cache_nothing_is_kept(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    distill(recipe(place, data__cache=False, training__updates=1), out)
    assert not (out / "cache").exists()


def test_a_damaged_checkpoint_is_one_clear_line(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        distill(recipe(place), out, Told(stop=1))
    (path,) = (out / "checkpoints").glob("*")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        distill(recipe(place), out)


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
        ({"data__frames": 10}, r"clips.*4 videos|too short"),
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
    if changed == {"data__frames": 10}:  # one film of three is long enough: usable, but too few for the batch
        message = r"only 2 clips"
        changed = {**changed, "training__batch": 3}
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


# A full disk ---------------------------------------------------------------------------------------------------------


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
    distill(recipe(place), out)  # room was made; the same command goes on


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


def test_safetensors_says_full_in_its_own_words(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer raises SafetensorError, which is no OSError, when the disk is full."""
    out = tmp_path / "run"
    import safetensors.torch

    write = safetensors.torch.save_file

    def save_file(tensors: Any, path: Any, *args: Any, **how: Any) -> None:
        if "motion" in str(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        write(tensors, path, *args, **how)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    with pytest.raises(UserError, match=r"motion.*No space left"):
        distill(recipe(place, method={"name": "mcm", "adversary": "none"}, training__updates=1), out)
    assert "card.json" not in inside(out / "student")
