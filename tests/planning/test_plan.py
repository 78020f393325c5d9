"""The plan: counts equal to those of loaded networks, memory equal to that of real steps, and no weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_animatediff, tiny_dinov2, tiny_look, tiny_modelscope
from tiny_transformers import tiny_cogvideox, tiny_wan
from torch import Tensor, nn

import mcm
from mcm.cli import main
from mcm.errors import UserError
from mcm.methods.base import Players
from mcm.models.bases import Bases
from mcm.models.video import load_video_model
from mcm.planning import Plan, parse_bytes, plan
from mcm.planning.meter import Meter, tensors
from mcm.planning.networks import Networks
from mcm.planning.step import measure_step
from mcm.recipe import Recipe, apply_overrides
from mcm.recipes import load_recipe
from mcm.training.average import PowerAverage
from mcm.training.players import make_players


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe on a tiny ModelScope with a tiny backbone; every clip is the student's own, so that steps are alike."""
    root = tmp_path_factory.mktemp("plan")
    tiny_modelscope(root / "teacher")
    tiny_dinov2(root / "backbone")
    return Recipe.model_validate({
        "teacher": str(root / "teacher"), "data": {"videos": "clips", "frames": 4, "size": (16, 16)},
        "method": {"generated_probability": 1.0}, "student": {"rank": 4, "alpha": 4},
        "training": {"batch": 2, "accumulation": 2},
        "discriminator": {"backbone": str(root / "backbone"), "head_width": 8},
    })  # fmt: skip


@pytest.fixture(scope="module")
def networks(tiny: Recipe) -> Networks:
    """Its shapes; steps are measured once."""
    return Networks(tiny, [], strict=True)


def real(recipe: Recipe) -> Players:
    """The run's players with their weights, and gradients as after a first step."""
    method = recipe.method.build()
    players = make_players(recipe, load_video_model(recipe.teacher), method, None)
    for player in method.order:
        for weight in players.parameters(player).values():
            weight.grad = torch.zeros_like(weight)
    return players


def numbers(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def size(found: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in found)


@pytest.mark.parametrize("changed", [{}, {"student.kind": "full", "optim.name": "adamw-8bit"}, {"teacher": "pocket"}])
def test_counts_are_those_of_the_loaded_networks(changed: dict[str, Any], tiny: Recipe) -> None:
    recipe = load_recipe("pocket-animatediff") if "teacher" in changed else apply_overrides(tiny, changed)
    kind = recipe.student.kind
    shapes = Networks(recipe, [], strict=True)
    counts, trained = shapes.parameters(kind)
    memory = shapes.memory(kind, None)
    model = load_video_model(recipe.teacher)
    assert [counts[name] for name in ("denoiser", "codec", "text encoder")] == [
        numbers(model.denoiser), numbers(model.codec), numbers(model.text)
    ]  # fmt: skip
    frozen = size(tensors(model.denoiser, model.codec, model.text))
    players = make_players(recipe, model, recipe.method.build(), None)
    learnt = sum(p.numel() for p in players.student.trainable().values())
    assert counts["LoRA adapters" if kind == "lora" else "student's copy"] == trained["student"] == learnt
    judge = players.discriminator
    assert judge is not None
    assert sum(trained.values()) == learnt + numbers(players.motion) + sum(
        p.numel() for p in judge.trainable().values()
    )
    rest = size([t for t in tensors(judge, players.motion) if t.grad is None])
    assert memory["weights"] == frozen + 4 * learnt + rest
    averages = size(list(players.student.averages().values()))
    if recipe.training.average is not None:  # of the weights over the run, besides the target
        averages += size(list(PowerAverage(players.student.trainable(), 0.1).values.values()))
    assert memory["averaged copies"] == size(tensors(players.averaged_motion)) + averages
    assert memory["gradients"] == 4 * sum(trained.values())
    assert memory["optimizer"] == (2 if kind == "full" else 8) * sum(trained.values())
    assert memory["peak"] == sum(memory.values()) - memory["peak"]


def test_the_step_of_shapes_is_the_real_step(tiny: Recipe, networks: Networks) -> None:
    found = networks.step("lora", "fp32", 2)
    measured = measure_step(networks.method, real(tiny), networks.shape, "fp32", 2)
    assert found.saved == pytest.approx(measured.saved, rel=0.02)
    assert found.decoder == pytest.approx(measured.decoder, rel=0.02)
    assert found.peak == pytest.approx(measured.peak, rel=0.05)
    assert found.work.flops == pytest.approx(measured.work.flops, rel=1e-3)
    assert found.peak > found.saved + found.decoder > 0
    four = measure_step(networks.method, real(tiny), networks.shape, "fp32", 4)
    assert networks.step("lora", "fp32", 4).peak == pytest.approx(four.peak, rel=0.15)
    assert networks.step("lora", "fp32", 4).work.flops == pytest.approx(four.work.flops, rel=0.02)


def test_the_peak_is_what_the_allocator_gives(tiny: Recipe, networks: Networks) -> None:
    """The meter's own count beside torch's record of every allocation of the same real step."""
    from torch.profiler import ProfilerActivity, profile

    players = real(tiny)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        measured = measure_step(networks.method, players, networks.shape, "fp32", 2)
    profiler: Any = seen.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    level = peak = 0
    for event in events:
        level += event.nbytes()
        peak = max(peak, level)
    assert measured.peak == pytest.approx(peak, rel=0.15)
    assert networks.step("lora", "fp32", 2).peak == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("make", [tiny_animatediff, tiny_modelscope])
def test_half_precision_and_checkpointing_are_smaller(
    make: Callable[[Path], Path], tiny: Recipe, tmp_path: Path
) -> None:
    teacher = make(tmp_path / "teacher")
    shapes = Networks(apply_overrides(tiny, {"teacher": str(teacher)}), [], strict=True)
    whole, half = shapes.step("lora", "fp32", 2), shapes.step("lora", "bf16", 2)
    again = shapes.step("lora", "fp32", 2, checkpointing=True)
    assert shapes.can_checkpoint()
    assert half.saved < whole.saved
    assert whole.fixed == 0 < half.fixed
    assert again.saved < 0.6 * whole.saved
    assert again.decoder < 0.7 * whole.decoder
    assert again.peak < whole.peak
    assert again.work.flops > whole.work.flops
    players = real(apply_overrides(shapes.recipe, {"training.gradient_checkpointing": True}))
    measured = measure_step(shapes.method, players, shapes.shape, "fp32", 2)
    assert again.saved == pytest.approx(measured.saved, rel=0.02)
    assert again.decoder == pytest.approx(measured.decoder, rel=0.02)
    assert again.peak == pytest.approx(measured.peak, rel=0.05)
    assert again.work.flops == pytest.approx(measured.work.flops, rel=1e-3)
    plain = shapes.step("lora", "fp16", 2)  # measured anew, after the one with checkpointing
    assert plain.saved == half.saved


@pytest.mark.parametrize("make", [tiny_wan, tiny_cogvideox])
def test_other_families_are_measured_as_they_are(make: Callable[[Path], Path], tiny: Recipe, tmp_path: Path) -> None:
    """Their codecs compress time, so that a frame needs those before it."""
    changed = {"teacher": str(make(tmp_path / "teacher")), "data.frames": None, "data.size": None}
    recipe = apply_overrides(tiny, changed)
    shapes = Networks(recipe, [], strict=True)
    found, measured = (
        shapes.step("lora", "fp32", 2), measure_step(shapes.method, real(recipe), shapes.shape, "fp32", 2)
    )  # fmt: skip
    assert found.saved == pytest.approx(measured.saved, rel=0.1)
    assert found.peak == pytest.approx(measured.peak, rel=0.15)
    assert found.work.flops == pytest.approx(measured.work.flops, rel=0.01)


@pytest.mark.parametrize("method", ["lcm", "animatelcm", "animatediff-lightning"])
def test_every_method_is_measured_by_its_own_turns(method: str, tiny: Recipe, tmp_path: Path) -> None:
    teacher = tiny_animatediff(tmp_path / "teacher")
    recipe = apply_overrides(
        tiny, {"teacher": str(teacher), "method.name": method, "method.generated_probability": 0.0}
    )
    shapes = Networks(recipe, [], strict=True)
    found = shapes.step("lora", "fp32", 2)
    measured = measure_step(shapes.method, real(recipe), shapes.shape, "fp32", 2)
    assert found.work.flops == pytest.approx(measured.work.flops, rel=0.01)
    assert found.peak == pytest.approx(measured.peak, rel=0.1)
    counts, trained = shapes.parameters("lora")
    if method == "animatediff-lightning":
        assert trained["discriminator (encoder)"] == counts["discriminator (encoder)"] > 0
        assert trained["student"] < counts["LoRA adapters"]  # its layers over time alone


def test_other_captions_cost_passes_of_the_heads_alone(tiny: Recipe, networks: Networks) -> None:
    plain, found = networks.step("lora", "fp32", 2), Networks(
        apply_overrides(tiny, {"method.matching_weight": 1.0}), [], strict=True
    ).step("lora", "fp32", 2)  # fmt: skip
    assert plain.work.flops < found.work.flops < 1.05 * plain.work.flops
    assert found.saved == plain.saved


def test_flops_and_bytes_of_layers_by_hand() -> None:
    layer, convolution = nn.Linear(3, 5), nn.Conv2d(2, 4, 3, padding=1)
    x, picture = torch.randn(7, 3, requires_grad=True), torch.randn(1, 2, 6, 8)
    with Meter(tensors(layer, convolution)) as meter:
        y = layer(x)
        assert meter.work[""].products == 2 * 7 * 3 * 5
        assert meter.live == 7 * 5 * 4
        del y
        assert (meter.live, meter.peak, meter.fixed) == (0, 7 * 5 * 4, 0)
        convolution(picture)
        assert meter.work[""].convolutions == 2 * 6 * 8 * 4 * 2 * 9
        meter.part = "attention"
        q = torch.randn(1, 2, 6, 8)
        nn.functional.scaled_dot_product_attention(q, q, q)
        assert meter.work["attention"].flops == 2 * (2 * 2 * 6 * 6 * 8)
        meter.part = "sum"
        held = q + q
        assert meter.work["sum"].moved == 3 * 4 * q.numel()
        lower = layer.weight.detach().bfloat16()
        assert meter.live >= held.numel() * 4 + lower.numel() * 2


def test_no_weight_is_read(tiny: Recipe, networks: Networks, tmp_path: Path) -> None:
    bare = tmp_path / "teacher"
    shutil.copytree(tiny.teacher, bare)
    for path in bare.rglob("*.safetensors"):
        path.unlink()
    found = Networks(apply_overrides(tiny, {"teacher": str(bare)}), [], strict=True)
    assert found.parameters("lora") == networks.parameters("lora")
    assert found.memory("lora", None) == networks.memory("lora", None)
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        load_video_model(bare)


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


def test_a_model_that_is_not_here_says_what_to_put_where(tiny: Recipe) -> None:
    with pytest.raises(UserError, match=r"nobody/nothing: not in Hugging Face's cache.*hf download nobody/nothing"):
        plan("nobody/nothing")
    with pytest.raises(UserError, match=r"backbone nobody/nothing: not in"):
        plan(apply_overrides(tiny, {"discriminator.backbone": "nobody/nothing"}))


def test_a_teacher_alone_is_planned_without_a_backbone(tiny: Recipe) -> None:
    found = plan(tiny.teacher, size="16x16", frames=2)
    assert "discriminator heads" not in found.networks
    assert any("planned without the discriminator" in note for note in found.notes)
    assert parse_bytes("24GB") == 24 * 10**9
    assert parse_bytes("1.5 gib") == 3 * 2**29


def test_the_command(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(tmp_path / "tiny.yaml")
    line = ["plan", str(tmp_path / "tiny.yaml"), "--card", "4090"]
    for words in (line, [*line, "--json", "--size", "32x16", "--frames", "2"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
    people, _, rest = capsys.readouterr().out.partition("\n{")
    told = json.loads("{" + rest)
    for words in ("LoRA adapters", "on one 4090: about", "fit into 24.00 GB, fastest first", "note: time: an estimate"):
        assert words in people
    assert (told["size"], told["frames"], told["card"]) == ([32, 16], 2, "4090")
    assert told["fits"][0]["seconds"] <= told["seconds_update"]
    assert told.keys() == Plan.__dataclass_fields__.keys()
    assert told["flops_update"] == pytest.approx(
        2 * sum(work["convolutions"] + work["products"] for work in told["step"]["parts"].values())
    )
    with pytest.raises(SystemExit) as left:
        main(["plan", str(tmp_path / "tiny.yaml"), "--card", "h1000"])
    assert left.value.code == 2
    assert callable(mcm.plan)


def test_bases_are_counted_as_they_are_held(tiny: Recipe, tmp_path: Path) -> None:
    teacher, other = (tiny_animatediff(tmp_path / name, "adapter", seed) for seed, name in enumerate(("one", "two")))
    bases = ("teacher", str(other), str(tiny_look(tmp_path / "look").parent))
    settings = {"teacher": str(teacher), "method.name": "animatediff-lightning", "method.bases": bases}
    recipe = apply_overrides(tiny, settings)
    alone = Networks(apply_overrides(recipe, {"method.bases": ()}), [], strict=True)
    shapes, model = Networks(recipe, [], strict=True), load_video_model(teacher)
    loaded = Bases.load(bases, model.denoiser)
    assert shapes.memory("lora", None)["bases"] == loaded.held() > 0
    assert "bases" not in alone.memory("lora", None)
    players = make_players(recipe, model, recipe.method.build(), None, loaded)
    (counts, _), (fewer, _) = shapes.parameters("lora"), alone.parameters("lora")
    judge = "discriminator (encoder)"
    assert counts[judge] == numbers(players.discriminator) > fewer[judge]
