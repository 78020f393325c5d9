"""The plan: counts equal to those of loaded networks, memory equal to that of real steps, and no weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_dinov2, tiny_modelscope
from torch import nn

import mcm
from mcm.cli import main
from mcm.errors import UserError
from mcm.methods.base import Players
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.features import FrozenFeatures
from mcm.models.student import Student
from mcm.models.video import load_video_model
from mcm.motion import motion_representation
from mcm.plan import RESERVE, _Bench, _fitting, plan
from mcm.recipe import Recipe, apply_overrides
from mcm.recipes import load_recipe
from mcm.settings import settings
from mcm.training.meter import Meter, Saved, Step, measure_step, tensors


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe on a tiny ModelScope with a tiny backbone."""
    root = tmp_path_factory.mktemp("plan")
    tiny_modelscope(root / "teacher")
    tiny_dinov2(root / "backbone")
    return Recipe.model_validate({
        "teacher": str(root / "teacher"), "data": {"videos": "clips", "frames": 4, "size": (16, 16)},
        "student": {"rank": 4, "alpha": 4}, "training": {"batch": 1, "accumulation": 4},
        "discriminator": {"backbone": str(root / "backbone"), "head_width": 8},
    })  # fmt: skip


@pytest.fixture(scope="module")
def bench(tiny: Recipe) -> _Bench:
    """Its shapes; steps are measured once."""
    return _Bench(tiny, [], strict=True)


NOTHING = Step(1, 0, 0, 0, 0, 0, {})


def numbers(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", ["tiny", "pocket-modelscope", "pocket-animatediff"])
def test_counts_are_those_of_the_loaded_networks(name: str, tiny: Recipe) -> None:
    recipe = tiny if name == "tiny" else apply_overrides(load_recipe(name), {"training.batch": 1})
    shapes = _Bench(recipe, [], strict=True)
    networks, trained = shapes.parameters("lora")
    memory = shapes.memory("lora", NOTHING)
    model = load_video_model(recipe.teacher)
    assert networks["denoiser"] == numbers(model.denoiser)
    assert networks["codec"] == numbers(model.codec)
    assert networks["text encoder"] == numbers(model.text)
    weights = tensors(model.denoiser, model.codec, model.text)
    held = sum(t.numel() * t.element_size() for t in weights)
    features = FrozenFeatures.load(recipe.discriminator.backbone)
    judge = FrameDiscriminator(features, model.text.width, recipe.discriminator.head_width)
    motion = motion_representation(recipe.method.motion, model.codec.channels)
    student = Student.lora(model.denoiser, recipe.student.rank, recipe.student.alpha, recipe.student.targets)
    adapters = sum(p.numel() for p in student.trainable().values())
    assert networks["LoRA adapters"] == trained["student"] == adapters
    assert networks["discriminator backbone"] == numbers(features)
    assert networks["discriminator heads"] == sum(p.numel() for p in judge.trainable().values())
    rest = sum(t.numel() * t.element_size() for t in tensors(judge, motion))
    assert memory["weights"] == held + 4 * adapters + rest
    assert memory["gradients"] == 4 * sum(trained.values())
    assert memory["AdamW"] == 8 * sum(trained.values())


def real(recipe: Recipe) -> Players:
    """The run's players with their weights."""
    model = load_video_model(recipe.teacher)
    s = recipe.student
    student = Student.lora(model.denoiser, s.rank, s.alpha, s.targets)
    motion, averaged = (motion_representation(recipe.method.motion, model.codec.channels) for _ in range(2))
    features = FrozenFeatures.load(recipe.discriminator.backbone)
    judge = FrameDiscriminator(features, model.text.width, recipe.discriminator.head_width, augment=0)
    players = Players(model, student, motion, averaged.requires_grad_(False), judge)
    for player in ("student", "discriminator"):
        for weight in players.parameters(player).values():
            weight.grad = torch.zeros_like(weight)
    return players


@pytest.mark.parametrize("batch", [1, 4])
def test_the_step_of_shapes_is_the_real_step(tiny: Recipe, bench: _Bench, batch: int) -> None:
    found, players = bench.step("lora", "fp32", batch), real(tiny)
    measured = measure_step(tiny.method.build(), players, None, bench.shape, "fp32", batch)
    assert found.saved == measured.saved > 0
    assert found.decoder == measured.decoder > 0
    assert found.flops == pytest.approx(measured.flops, rel=1e-3)
    assert found.flops > 5 * found.forward
    assert found.peak == pytest.approx(measured.peak, rel=0.05)  # four clips are extrapolated from one and two
    assert found.peak > found.saved + found.decoder


def test_flops_and_bytes_of_layers_by_hand() -> None:
    layer, convolution = nn.Linear(3, 5), nn.Conv2d(2, 4, 3, padding=1)
    x, picture = torch.randn(7, 3, requires_grad=True), torch.randn(1, 2, 6, 8)
    saved = Saved(tensors(layer))
    with Meter(tensors(layer, convolution)) as meter:
        with saved.counting():
            y = layer(x)
        assert meter.flops == 2 * 7 * 3 * 5
        assert meter.live == 7 * 5 * 4
        assert saved.bytes == 7 * 3 * 4  # the input, for the weight's gradient
        del y
        assert (meter.live, meter.peak) == (0, 7 * 5 * 4)
        convolution(picture)
        assert meter.flops == 2 * 7 * 3 * 5 + 2 * 6 * 8 * 4 * 2 * 9
        q = torch.randn(1, 2, 6, 8)
        before = meter.flops
        nn.functional.scaled_dot_product_attention(q, q, q)
        assert meter.flops - before == 2 * (2 * 2 * 6 * 6 * 8)


def test_no_weight_is_read(tiny: Recipe, bench: _Bench, tmp_path: Path) -> None:
    bare = tmp_path / "teacher"
    shutil.copytree(tiny.teacher, bare)
    for path in bare.rglob("*.safetensors"):
        path.unlink()
    found = _Bench(apply_overrides(tiny, {"teacher": str(bare)}), [], strict=True)
    step = found.step("lora", "fp32", 1)
    assert step == bench.step("lora", "fp32", 1)
    assert found.parameters("lora") == bench.parameters("lora")
    assert found.memory("lora", step) == bench.memory("lora", step)
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        load_video_model(bare)


def test_what_fits_is_made_of_settings(tiny: Recipe, bench: _Bench) -> None:
    whole = _fitting(bench, 10**10, "4090")
    assert whole[0]["settings"]["training.batch"] == 4
    assert {fit["settings"]["student.kind"] for fit in whole} == {"lora", "full"}
    names = {name for name, _ in settings(Recipe)}
    for fit in whole:
        assert fit["settings"].keys() <= names
        words = fit["overrides"].replace("--", "").split()
        changed = apply_overrides(tiny, dict(zip(words[::2], words[1::2], strict=True)))
        assert changed.training.batch * changed.training.accumulation == 4
        assert changed.student.alpha / changed.student.rank == 1
    room = sorted(fit["peak"] for fit in whole)[len(whole) // 2] + 1
    less = _fitting(bench, int(room / (1 - RESERVE)) + 1, None)
    assert len(less) == sum(fit["peak"] <= room for fit in whole)
    assert _fitting(bench, 1000, None) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"card": "h10"}, "unknown card 'h10'.*did you mean 'h100'"),
        ({"memory": "lots"}, "memory 'lots': expected a size such as 24GB"),
        ({"frames": 0}, "data.frames"),
        ({"size": (15, 16)}, "multiples of"),
    ],
)
def test_what_cannot_be_is_one_line(tiny: Recipe, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(tiny, **changed)


def test_a_model_that_is_not_here_says_what_to_put_where() -> None:
    with pytest.raises(UserError, match=r"nobody/nothing: not in Hugging Face's cache.*hf download nobody/nothing"):
        plan("nobody/nothing")


def test_the_command(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(tmp_path / "tiny.yaml")
    line = ["plan", str(tmp_path / "tiny.yaml")]
    for words in (line, [*line, "--json", "--size", "32x16", "--frames", "2"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
    people, _, rest = capsys.readouterr().out.partition("\n{")
    told = json.loads("{" + rest)
    assert "LoRA adapters" in people
    assert "note: gradient checkpointing has no" in people
    assert (told["size"], told["frames"]) == ([32, 16], 2)
    assert told["checkpointed"]["saved"] < told["step"]["saved"]
    assert told["checkpointed"]["flops"] > told["step"]["flops"]
    with pytest.raises(SystemExit) as left:
        main(["plan", str(tmp_path / "tiny.yaml"), "--card", "h1000"])
    assert left.value.code == 2
    assert callable(mcm.plan)
