"""training.compile: the same losses, gradients and files as without it, and one line where it cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_animatediff, tiny_modelscope
from tiny_run import ADAPTER, make_material, recipe
from tiny_transformers import tiny_cogvideox, tiny_wan

from mcm.distill import distill
from mcm.errors import UserError
from mcm.models import compiling
from mcm.models.compiling import check_compiler, compile_network, regions
from mcm.models.student import Student
from mcm.models.video import load_video_model

# Tracing whole networks takes minutes on two cores: `make compile` runs these.
slow = pytest.mark.skipif(not os.environ.get("MCM_COMPILE"), reason="minutes: make compile")


def can_compile() -> bool:
    try:
        check_compiler(torch.device("cpu"))
    except UserError:
        return False
    return True


def test_what_is_compiled(tmp_path: Path) -> None:
    makers = {"a": tiny_animatediff, "m": tiny_modelscope, "w": tiny_wan, "c": tiny_cogvideox}
    networks = {name: load_video_model(make(tmp_path / name)).denoiser.network for name, make in makers.items()}
    assert regions(networks["a"]) == [networks["a"]]
    assert regions(networks["m"]) == [networks["m"]]
    assert regions(networks["w"]) == list(networks["w"].blocks)
    assert regions(networks["c"]) == list(networks["c"].transformer_blocks)
    experts: Any = load_video_model(tiny_wan(tmp_path / "two", experts=0.8)).denoiser.network
    assert regions(experts) == [*experts.transformer.blocks, *experts.transformer_2.blocks]


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("make", "checkpointing"), [(tiny_animatediff, True), (tiny_wan, False)])
def test_every_voice_says_the_same(make: Any, checkpointing: bool, tmp_path: Path) -> None:
    """Traced and differentiated as compiled code is, without the slow step of making machine code of it."""
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = load_video_model(make(tmp_path / "teacher") if not compiled else tmp_path / "teacher")
        student = Student.lora(
            model.denoiser, 2, 2.0, "attention", averaged=True, checkpointing=checkpointing,
            rng=torch.Generator().manual_seed(0),
        )  # fmt: skip
        with torch.no_grad():
            for number, (_, weight) in enumerate(sorted(student.trainable().items())):
                weight.add_(0.02 * (number % 5 + 1))
        names = [name for name, _ in model.denoiser.network.named_parameters()]
        if compiled:
            compile_network(model.denoiser.network, backend="aot_eager")
        assert [name for name, _ in model.denoiser.network.named_parameters()] == names
        frames = 5 if make is tiny_wan else 3
        size = (32, 32) if make is tiny_wan else (16, 16)
        z = torch.randn(2, *model.latent_shape(frames, size), generator=torch.Generator().manual_seed(1))
        t, text = torch.tensor([700, 300]), model.text(["a red puppet walks", "a blue puppet"])
        voices = {"teacher": student.teacher(z, t, text).x0}
        if make is tiny_wan:  # a whole UNet takes long to trace, and is traced for each voice
            voices["target"] = student.target(z, t, text).x0
        own = student.student(z, t, text).x0
        own.square().mean().backward()
        voices |= {name: weight.grad for name, weight in student.trainable().items() if weight.grad is not None}
        voices |= {"student": own.detach(), "teacher again": student.teacher(z, t, text).x0}
        found.append(voices)
    plain, other = found
    assert plain.keys() == other.keys()
    assert len(plain) > 10
    assert not torch.allclose(plain["student"], plain["teacher"], atol=1e-3)
    assert torch.equal(other["teacher"], other["teacher again"])
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


@slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not can_compile(), reason="torch finds no C++ compiler")
def test_a_run_has_the_same_losses_and_files(tmp_path: Path) -> None:
    place = make_material(tmp_path / "place")
    tiny_wan(place / "wan")
    shape = {"data__frames": 5, "data__size": (32, 32), "method": {"name": "lcm", "frames_picked": 2}}
    losses, weights = [], []
    for compiled in (False, True):
        torch.compiler.reset()
        out = tmp_path / f"run{compiled}"
        distill(recipe(place, "wan", training__compile=compiled, **shape), out)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses.append([{k: v for k, v in line.items() if k in ("consistency", "gradient/student")} for line in lines])
        weights.append(load_file(out / ADAPTER))
    assert [set(line) for line in losses[0]] == [{"consistency", "gradient/student"}] * 2
    for plain, other in zip(*losses, strict=True):
        assert other == pytest.approx(plain, rel=1e-3)
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=2e-4, msg=name)


def test_without_a_compiler_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: Any, **settings: Any) -> Any:
        def call(*tensors: torch.Tensor) -> None:
            raise RuntimeError("\nNo working C++ compiler found\nand much more")

        return call

    monkeypatch.setattr(compiling.torch, "compile", missing)
    words = r"cannot compile for cpu here: No working C\+\+ compiler found; install"
    with pytest.raises(UserError, match=words) as error:
        distill(recipe(make_material(tmp_path / "place"), training__compile=True), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
