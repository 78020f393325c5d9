"""Videos that follow a pose: what they depend on, what is written beside them, and the command from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_controlnet
from tiny_run import make_material, recipe

import mcm
from mcm.cli import main
from mcm.data.open import open_pose
from mcm.data.poses import read_poses, write_poses
from mcm.distill import distill
from mcm.errors import UserError
from mcm.generate import Maker, Video, generate, load_maker
from mcm.models.control import FrameControl, load_controlnet
from mcm.pocket import zoo
from mcm.pocket.sources import action

PROMPTS = ["a red puppet walks", "a blue puppet jumps"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """make_material's, and controlnet/, wave.json (5 frames)."""
    place = make_material(tmp_path_factory.mktemp("material"))
    tiny_controlnet(place / "controlnet", seed=2)
    poses = action("wave", 5)
    assert poses is not None
    write_poses(place / "wave.json", poses)
    return place


@pytest.fixture(scope="module", params=["teacher", "lora", "full"])
def maker(request: pytest.FixtureRequest, place: Path) -> Maker:
    if request.param == "teacher":
        return load_maker(place / "animatediff")
    student = {"kind": "full"} if request.param == "full" else {"rank": 2, "alpha": 4.0, "targets": "attention"}
    out = place / request.param
    distill(recipe(place, student=student, training__updates=1, optim={"lr": 1e-2, "warmup": 0}), out)
    return load_maker(out)


def made(maker: Maker, place: Path, prompts: list[str] = PROMPTS, **settings: Any) -> list[Video]:
    usual = {"seeds": [7], "steps": 2, "frames": 4, "pose": place / "wave.json", "controlnet": place / "controlnet"}
    return list(generate(maker, prompts, **(usual | settings)))


def apart(a: Video, b: Video) -> int:
    """The largest difference of two videos, in steps of 1/255."""
    return int(np.abs(a.frames.astype(int) - b.frames.astype(int)).max())


# What a video depends on ---------------------------------------------------------------------------------------------


def test_teacher_and_students_follow_a_pose(maker: Maker, place: Path) -> None:
    posed = made(maker, place)
    free = list(generate(maker, PROMPTS, seeds=[7], steps=2, frames=4))
    other = made(maker, place, pose="kick")
    for a, b, c in zip(posed, free, other, strict=True):
        assert apart(a, b) > 5
        assert apart(a, c) > 2
        expected = {"pose": str(place / "wave.json"), "controlnet": str(place / "controlnet"), "pose_scale": 1.0}
        assert a.settings == b.settings | expected
    for a, b in zip(made(maker, place, pose_scale=0), free, strict=True):
        assert np.array_equal(a.frames, b.frames)
    for a, b in zip(made(maker, place, batch=1), posed, strict=True):
        assert apart(a, b) <= 1


def test_the_models_own_word_under_control(maker: Maker, place: Path) -> None:
    """The sampler's first question, by hand: the student's own weights, guided where the model is."""
    control = maker.control(place / "wave.json", place / "controlnet", 0.6, frames=4)
    text, empty = maker.model.text(PROMPTS), maker.model.text([""])
    z, t = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 500])
    network: Any = maker.student or maker.model.denoiser
    with torch.no_grad():
        found = maker._denoise(text, 3.0, control)(z, t)
        halves = []
        for words in (text, empty):
            pictures = open_pose(place / "wave.json", 4, (16, 16))[None].repeat(2, 1, 1, 1, 1)
            said = FrameControl(load_controlnet(place / "controlnet", maker.model), pictures, 0.6)
            halves.append(network(z, t, words, said(z, t, words)).eps)
    torch.testing.assert_close(found.eps, halves[1] + 3 * (halves[0] - halves[1]), atol=1e-4, rtol=1e-4)


def test_a_pose_by_its_file_its_pictures_and_as_an_object(place: Path, tmp_path: Path) -> None:
    maker = load_maker(place / "animatediff")
    (by_file,) = made(maker, place, PROMPTS[:1])
    poses = read_poses(place / "wave.json")
    (by_object,) = made(maker, place, PROMPTS[:1], pose=poses)
    assert np.array_equal(by_file.frames, by_object.frames)
    (tmp_path / "again.json").write_text(json.dumps(by_object.settings["pose"]))
    assert np.array_equal(read_poses(tmp_path / "again.json").points, poses.points)  # nothing is lost in the settings
    for number, picture in enumerate(poses.pictures(4, (16, 16)).permute(1, 2, 3, 0)):
        Image.fromarray(picture.mul(255).round().byte().numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "again.json").unlink()
    (by_pictures,) = made(maker, place, PROMPTS[:1], pose=tmp_path)
    assert apart(by_file, by_pictures) <= 1


def test_each_clip_of_a_batch_may_follow_its_own_pose(place: Path) -> None:
    maker = load_maker(place / "animatediff")
    network = load_controlnet(place / "controlnet", maker.model)
    pictures = torch.stack([open_pose(name, 4, (16, 16)) for name in ("kick", "bow")])
    both = maker.latents(PROMPTS, [1, 2], 2, frames=4, control=FrameControl(network, pictures))
    for i, name in enumerate(("kick", "bow")):
        control = maker.control(name, place / "controlnet", frames=4)
        alone = maker.latents(PROMPTS[i : i + 1], [1 + i], 2, frames=4, control=control)
        torch.testing.assert_close(alone[0], both[i], atol=1e-4, rtol=1e-3)


def test_the_zoos_own_teacher_has_its_controlnet(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    with pytest.raises(UserError, match=r"no ControlNet is known for it; name one \(--controlnet\)"):
        generate(place / "animatediff", PROMPTS, pose="walk")
    shutil.copytree(place / "animatediff", tmp_path / "pocket-animatediff")
    with pytest.raises(UserError, match="controlnet pocket-openpose: no such folder"):
        generate("pocket-animatediff", PROMPTS, pose="walk")
    tiny_controlnet(tmp_path / "pocket-openpose")
    (video,) = mcm.generate("pocket-animatediff", PROMPTS[0], steps=1, frames=2, pose="walk")
    assert (video.settings["pose"], video.settings["controlnet"]) == ("walk", "pocket-openpose")


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pose": "wawe"}, "did you mean 'wave'"),
        ({"pose_scale": -0.5}, "pose scale -0.5: expected a number of at least 0"),
        ({"pose_scale": float("nan")}, "pose scale nan"),
        ({"pose": None}, "controlnet .*: there is no pose for it to follow"),
        ({"frames": 17}, "frames 17"),
        ({"controlnet": "no/such/folder/here"}, "controlnet no/such/folder/here"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused_before_anything_is_made(settings: dict[str, Any], words: str, place: Path) -> None:
    maker = load_maker(place / "animatediff")
    usual = {"pose": place / "wave.json", "controlnet": place / "controlnet"}
    with pytest.raises(UserError, match=words):
        generate(maker, PROMPTS, **(usual | settings))  # not even asked for the first video


def test_another_family_is_told_which_one_can(place: Path) -> None:
    with pytest.raises(UserError, match=r"UNet3DConditionModel cannot be steered .* family animatediff"):
        generate(place / "modelscope", PROMPTS, pose="walk")


# The command ---------------------------------------------------------------------------------------------------------


def leave(*tokens: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(tokens)
    return int(str(left.value.code))


def test_the_command_from_end_to_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["generate", str(place / "animatediff"), "--prompt", PROMPTS[0], "--steps", "2", "--frames", "4"]
    posed = [*command, "--pose", str(place / "wave.json"), "--controlnet", str(place / "controlnet")]
    assert leave(*posed, "--pose-scale", "0.5", "--format", "gif", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    file = tmp_path / told["videos"][0]["file"]
    beside = json.loads(file.with_suffix(".json").read_text())
    assert (beside["pose"], beside["pose_scale"]) == (str(place / "wave.json"), 0.5)
    assert beside["controlnet"] == str(place / "controlnet")
    assert "-pose-wave-controlnet-0.5" in told["out"]
    maker = load_maker(place / "animatediff")
    (wanted,) = made(maker, place, PROMPTS[:1], seeds=[0], pose_scale=0.5)
    with Image.open(file) as film:
        film.seek(2)
        assert np.abs(np.asarray(film.convert("RGB")).astype(int) - wanted.frames[2]).max() <= 2

    assert leave(*posed, "--json") == 0  # another scale lies elsewhere
    assert json.loads(capsys.readouterr().out)["out"] != told["out"]
    assert leave(*posed, "--out", told["out"]) == 1
    assert "pose_scale is 0.5 there and 1.0 here" in capsys.readouterr().err
    before = sorted(tmp_path.rglob("*"))
    assert leave(*command, "--pose", "bow") == 1
    assert "no ControlNet is known for it; name one (--controlnet)" in capsys.readouterr().err
    assert leave(*command, "--pose", "wawe", "--controlnet", str(place / "controlnet")) == 1
    said = capsys.readouterr().err
    assert "pose wawe: no such file" in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
