"""Exports, loaded by a program that has diffusers and peft but not mcm: the same noise must make the same frames."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_students import outside, shown, tiny_student, whole_teacher

import mcm
from mcm.card import StudentCard
from mcm.cli import main
from mcm.diffusion.paths import path_from_config
from mcm.errors import UserError
from mcm.generate import Maker, generate, load_maker
from mcm.models.student import Student
from mcm.models.video import load_video_model
from mcm.samplers.scheduler import diffusers_scheduler

EXPORTS = [
    ("animatediff", "diffusers"),
    ("animatediff", "peft"),
    ("animatediff", "merged"),
    ("animatediff", "comfyui"),
    ("animatediff-adapter", "merged"),
    ("animatediff-full", "merged"),
    ("animatediff-euler", "merged"),
    ("modelscope", "peft"),
    ("modelscope", "merged"),
    ("modelscope-full", "merged"),
    ("cogvideox", "diffusers"),
    ("cogvideox", "peft"),
    ("cogvideox", "merged"),
    ("wan", "diffusers"),
    ("wan", "peft"),
    ("wan", "merged"),
    ("wan-full", "merged"),
    ("wan-euler", "merged"),
    ("wan-experts", "merged"),
]
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teachers/ and students/ of all families."""
    root = tmp_path_factory.mktemp("exports")
    for family, layout in (("animatediff", "motion"), ("animatediff", "adapter"), ("modelscope", "motion")):
        name = "animatediff-adapter" if layout == "adapter" else family
        teacher = whole_teacher(root / "teachers" / name, family, layout)
        targets = "attention" if layout == "adapter" else "all"
        tiny_student(root / "students" / name, teacher, targets=targets)
        if layout == "motion":
            tiny_student(root / "students" / f"{name}-full", teacher, kind="full")
    euler: dict[str, Any] = {"sampler": {"name": "euler"}, "timestep_scaling": None}
    tiny_student(root / "students" / "animatediff-euler", root / "teachers" / "animatediff", **euler)
    teacher = whole_teacher(root / "teachers" / "cogvideox", "cogvideox")
    tiny_student(root / "students" / "cogvideox", teacher, frames=9, size=(32, 48))
    shape: dict[str, Any] = {"frames": 9, "size": (32, 48)}
    for name in ("wan", "wan-experts"):
        tiny_student(root / "students" / name, whole_teacher(root / "teachers" / name, "wan", name[4:]), **shape)
    tiny_student(root / "students" / "wan-full", root / "teachers" / "wan", kind="full", **shape)
    tiny_student(root / "students" / "wan-euler", root / "teachers" / "wan", **shape, **euler)
    return root


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, dict[str, np.ndarray]]:
    """What the other program makes of every export, in one process: importing diffusers takes it longest."""
    jobs = {}
    for student, kind in EXPORTS:
        folder = mcm.export(place / "students" / student, kind, place / "out" / f"{student}-{kind}")
        teacher = place / "teachers" / student.removesuffix("-euler")
        jobs[f"{student}-{kind}"] = {"folder": str(folder), "teacher": str(teacher)}
        if student.startswith(("cogvideox", "wan")):
            jobs[f"{student}-{kind}"] |= {"frames": 9, "shape": [4, 3, 4, 6], "size": [32, 48]}
    half = mcm.export(place / "students" / "modelscope", "merged", place / "out" / "half", half=True)
    return outside({**jobs, "half": {"folder": str(half), "teacher": ""}}, place)


@pytest.mark.parametrize(("student", "kind"), EXPORTS)
def test_the_same_frames_without_mcm(
    student: str, kind: str, place: Path, made: dict[str, dict[str, np.ndarray]]
) -> None:
    maker = load_maker(place / "students" / student)
    for steps in (1, 4):
        wanted, found = shown(maker, steps), made[f"{student}-{kind}"][f"steps{steps}"]
        assert found.shape == wanted.shape
        assert float(np.abs(found - wanted).max()) <= 1e-4
        assert ((wanted > 0.01) & (wanted < 0.99)).mean() > 0.5  # not all black or white, whatever made it


@pytest.mark.parametrize(
    "student", ["animatediff", "animatediff-adapter", "modelscope", "cogvideox", "wan", "wan-experts"]
)
def test_the_adapters_are_seen(student: str, place: Path) -> None:
    """Without them the frames would differ by much more than the test above allows."""
    maker = load_maker(place / "students" / student)
    before = shown(maker, 4)
    assert maker.card is not None
    bare = load_video_model(maker.card.teacher.name)
    apart = Student.load(bare.denoiser, place / "students" / student)  # not merged, as a maker's is
    for weight in apart.trainable().values():
        weight.data.zero_()
    maker = Maker(bare, student, apart, maker.card)
    assert float(np.abs(shown(maker, 4) - before).max()) > 0.05


@pytest.mark.parametrize("kind", ["diffusers", "peft", "merged"])
@pytest.mark.parametrize("student", ["animatediff", "wan"])
def test_the_readme_makes_mcms_own_video(
    student: str, kind: str, place: Path, made: dict[str, dict[str, np.ndarray]]
) -> None:
    """Its code, run as it stands, and `mcm.generate` with the same prompt and seed."""
    (video,) = generate(load_maker(place / "students" / student), "a prompt", seeds=[0])
    found = made[f"{student}-{kind}"]["readme"]
    assert float(np.abs(found * 255 - video.frames).max()) <= 0.5 + 255e-4  # generate rounds to bytes
    text = (place / "out" / f"{student}-{kind}" / "README.md").read_text()
    assert "1, 2, 4, 8 steps" in text
    assert "no guidance (`guidance_scale=1.0`)" in text


def test_every_readme_runs(made: dict[str, dict[str, np.ndarray]]) -> None:
    for name, videos in made.items():
        assert ("readme" in videos) == (not name.endswith("comfyui"))
        assert all(np.isfinite(video).all() for video in videos.values())


# What is in the files -------------------------------------------------------------------------------------------------


def test_comfyuis_names(place: Path, made: dict[str, dict[str, np.ndarray]]) -> None:
    """kohya's names, which ComfyUI makes of diffusers' by underscores, and AnimateDiff's in the motion LoRA."""
    folder = place / "out" / "animatediff-comfyui"
    spatial = load_file(folder / "animatediff_lora.safetensors")
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    for layer in (f"{block}_attn1_to_out_0", f"{block}_ff_net_0_proj", "lora_unet_up_blocks_0_resnets_0_conv1"):
        assert {f"{layer}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")} <= spatial.keys()
    assert all(key.startswith("lora_unet_") and "motion" not in key for key in spatial)
    assert spatial[f"{block}_attn1_to_q.alpha"].item() == 6
    assert spatial["lora_unet_up_blocks_0_resnets_0_conv1.lora_up.weight"].shape[1:] == (3, 1, 1)
    motion = load_file(folder / "animatediff_motion_lora.safetensors")
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    for layer in ("attention_blocks.0.processor.to_q", "attention_blocks.1.processor.to_out", "ff.net.2"):
        assert {f"{block}.{layer}_lora.{end}.weight" for end in ("down", "up")} <= motion.keys()
    assert all("temporal" in key and weight.ndim == 2 for key, weight in motion.items())
    text = (folder / "README.md").read_text()
    assert "beta_schedule `lcm >> sqrt_linear`" in text
    assert all(f"`{path.name}`" in text for path in folder.glob("*.safetensors"))


def test_only_the_files_that_there_are_weights_for(place: Path, tmp_path: Path) -> None:
    """A student whose layers over time alone have adapters has no spatial file."""
    student = tmp_path / "student"
    tiny_student(student, place / "teachers" / "animatediff", targets="attention")
    weights = load_file(student / "adapter_model.safetensors")
    kept = {key: weight for key, weight in weights.items() if "motion_modules" in key}
    config = json.loads((student / "adapter_config.json").read_text())
    config["target_modules"] = sorted({key.split(".lora_")[0].removeprefix("base_model.model.") for key in kept})
    (student / "adapter_config.json").write_text(json.dumps(config))
    save_file(kept, student / "adapter_model.safetensors")
    folder = mcm.export(student, "comfyui", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"README.md", "export.json", "student_motion_lora.safetensors"}


@pytest.mark.parametrize("kind", ["diffusers", "peft", "merged", "comfyui"])
def test_half(kind: str, place: Path, tmp_path: Path) -> None:
    student = place / "students" / "animatediff"
    folder = mcm.export(student, kind, tmp_path / "half", half=True)
    for path in folder.rglob("*.safetensors"):
        whole = load_file(place / "out" / f"animatediff-{kind}" / path.relative_to(folder))
        for name, weight in load_file(path).items():
            if weight.is_floating_point():
                assert weight.dtype == torch.float16
                torch.testing.assert_close(weight.float(), whole[name], atol=1e-3, rtol=1e-3)


def test_half_makes_nearly_the_same_video(made: dict[str, dict[str, np.ndarray]]) -> None:
    for steps in ("steps1", "steps4"):
        apart = np.abs(made["half"][steps] - made["modelscope-merged"][steps])
        assert 0 < float(apart.mean()) < 5e-3


def test_a_peft_export_is_a_student_itself(place: Path, made: dict[str, dict[str, np.ndarray]]) -> None:
    folder = place / "out" / "modelscope-peft"
    assert np.array_equal(shown(load_maker(folder), 2), shown(load_maker(place / "students" / "modelscope"), 2))


def test_export_json_tells_what_it_was(place: Path, made: dict[str, dict[str, np.ndarray]]) -> None:
    told = json.loads((place / "out" / "animatediff-euler-merged" / "export.json").read_text())
    card = StudentCard.load(place / "students" / "animatediff-euler")
    assert told["format"] == "merged"
    assert StudentCard.model_validate(told["card"]) == card


@pytest.mark.parametrize("scaling", [4.0, 10.0])
def test_the_scheduler_is_the_cards(place: Path, scaling: float) -> None:
    card = StudentCard.load(place / "students" / "cogvideox").model_copy(update={"timestep_scaling": scaling})
    scheduler = diffusers_scheduler(card)
    assert scheduler.config["timestep_scaling"] == scaling
    assert scheduler.config["prediction_type"] == "v_prediction"
    alpha = path_from_config(card.scheduler).alpha(torch.arange(1000))
    torch.testing.assert_close(scheduler.alphas_cumprod, alpha**2, atol=1e-6, rtol=1e-4)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "kind", "message"),
    [
        ("animatediff", "difusers", r"unknown format 'difusers'.*did you mean 'diffusers'"),
        ("modelscope", "diffusers", r"UNet3DConditionModel takes no LoRA.*expected format peft or merged"),
        ("modelscope", "comfyui", r"for the family animatediff.*of the family modelscope: expected format peft or"),
        ("wan-experts", "diffusers", r"is several \(Experts\).*expected format merged"),
        ("wan-experts", "peft", r"is several \(Experts\).*expected format merged"),
        ("wan", "comfyui", r"for the family animatediff.*of the family wan"),
        ("animatediff-full", "diffusers", r"has no adapters; expected format merged"),
        ("animatediff-full", "peft", r"has no adapters; expected format merged"),
        ("animatediff-full", "comfyui", r"has no adapters; expected format merged"),
    ],
)
def test_a_format_that_cannot_be_had(student: str, kind: str, message: str, place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        mcm.export(place / "students" / student, kind, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_is_no_student(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a teacher: expected a student"):
        mcm.export(place / "teachers" / "modelscope", "merged", tmp_path / "out")


@pytest.mark.parametrize(
    "changed",
    [
        {"sampler": {"name": "consistency", "sigma_data": 1.0}},
        {"scheduler": FLOW, "timestep_scaling": 0.01},  # f is far from x0
        {"scheduler": FLOW, "sampler": {"name": "consistency", "original_steps": 1000}, "steps_supported": (1000,)},
    ],
    ids=["sigma", "scaling", "steps"],
)
def test_a_sampler_that_diffusers_lacks(changed: dict[str, Any], place: Path) -> None:
    card = StudentCard.load(place / "students" / "animatediff")
    other = {k: {**getattr(card, k), **v} if isinstance(v, dict) else v for k, v in changed.items()}
    with pytest.raises(UserError, match="diffusers has no scheduler for its sampler 'consistency'"):
        diffusers_scheduler(card.model_copy(update=other))


def test_the_same_again_and_another(place: Path, tmp_path: Path) -> None:
    student, out = place / "students" / "modelscope", tmp_path / "out"
    out.mkdir()  # an empty folder will do
    mcm.export(student, "peft", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    mcm.export(student, "peft", out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UserError, match=r"holds another run \(half is false there and true here\)"):
        mcm.export(student, "peft", out, half=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"already holds other things \(letter\.txt\)"):
        mcm.export(student, "peft", tmp_path / "mine")


def test_a_full_disk_leaves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mcm.export.write_json", full)  # the last file: all others are written already
    with pytest.raises(UserError, match="the disk is full"):
        mcm.export(place / "students" / "animatediff", "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_verb(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(place / "students" / "modelscope"), "--format", "peft", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == "runs/exports/modelscope-peft"
    assert {"README.md", "adapter_model.safetensors", "scheduler/scheduler_config.json"} <= set(told["files"])
    assert all((tmp_path / told["out"] / file).is_file() for file in told["files"])
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(place / "students" / "modelscope"), "--format", "pefft"])
    assert "pefft" in capsys.readouterr().err
