"""Settings of training that save memory or time: what they must not change, and what is said where they cannot be."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stage import make_batch
from tiny import tiny_animatediff, tiny_modelscope
from tiny_run import recipe
from tiny_trainer import make_trainer, weights

import mcm.training.trainer
from mcm.errors import UserError
from mcm.methods.base import Players
from mcm.models.video import load_video_model
from mcm.recipe import OptimConfig
from mcm.training.device import autocast
from mcm.training.log import RunLog
from mcm.training.optimizers import make_optimizer
from mcm.training.players import make_players
from mcm.training.schedule import Plan


def gradients(players: Players) -> dict[str, torch.Tensor]:
    batch = make_batch(players, real=False)
    t = torch.tensor([300, 700])
    players.student.student(batch.z0, t, batch.text).x0.square().mean().backward()
    found = {name: p.grad for name, p in players.student.trainable().items() if p.grad is not None}
    return {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("family", ["animatediff", "modelscope"])
@pytest.mark.parametrize("student", [{"rank": 2, "targets": "attention"}, {"kind": "full"}], ids=["lora", "full"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, student: Any, family: str) -> None:
    (tiny_animatediff if family == "animatediff" else tiny_modelscope)(tmp_path / family)
    found = []
    for on in (False, True):
        chosen = recipe(tmp_path, family, student=student, training__gradient_checkpointing=on)
        players = make_players(chosen, load_video_model(chosen.teacher), chosen.method.build(), None)
        for network in (players.student.denoisers()[0].network, players.model.codec):
            assert any("forward" in vars(module) for module in network.modules()) == on
        found.append(gradients(players))
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-7, rtol=1e-5, msg=name)


def test_the_fused_optimizer_steps_alike() -> None:
    ends = []
    for name in ("adamw", "adamw-fused"):
        rng = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5, 3, generator=rng))
        optimizer = make_optimizer(OptimConfig.model_validate({"name": name}), [weight], 1e-2)
        assert optimizer.param_groups[0]["fused"] == (True if name == "adamw-fused" else None)
        for _ in range(3):
            weight.grad = torch.randn(5, 3, generator=rng)
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-6)


def test_eight_bits_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    optim, weight = OptimConfig(name="adamw-8bit"), torch.nn.Parameter(torch.zeros(2))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes: pip install .*\[8bit\]"):
        make_optimizer(optim, [weight], 1e-3)
    given: dict[str, Any] = {}

    def made(weights: Any, **settings: Any) -> str:
        given.update(settings)
        return "optimizer"

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=made)))
    assert make_optimizer(optim, [weight], 1e-3) == "optimizer"
    assert given == {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-2}
    with pytest.raises(UserError, match="divided among ranks"):
        make_optimizer(optim, [weight], 1e-3, sharded=True)


def test_half_precision_is_refused_on_the_cpu() -> None:
    for precision in ("bf16", "fp16"):
        with pytest.raises(UserError, match=f"training.precision is '{precision}', but this machine .* CPU: use fp32"):
            autocast(torch.device("cpu"), precision)


def test_scaled_losses_give_the_same_run_and_overflow_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaling of "fp16", in float32, where a power of two costs no bit."""
    plain, _ = make_trainer(tmp_path, tmp_path / "plain", "lcm", adversary="video", updates=2)
    plain.run()
    monkeypatch.setattr(mcm.training.trainer, "autocast", lambda device, precision: nullcontext())
    monkeypatch.setattr("tiny_trainer.Plan", lambda *a, **k: Plan(*a, **k, precision="fp16"))

    def scaled(folder: str) -> Any:
        return make_trainer(tmp_path, tmp_path / folder, "lcm", adversary="video", updates=2)[0]

    trainer = scaled("scaled")
    trainer.run()
    assert trainer.scaler.is_enabled()
    ends = weights(plain), weights(trainer)
    assert all(torch.equal(ends[1][name], weight) for name, weight in ends[0].items())

    trainer = scaled("overflow")
    before, scale = weights(trainer), trainer.scaler.get_scale()
    last = list(trainer.players.student.trainable().values())[-1]
    handle = last.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    numbers = trainer.step()
    handle.remove()
    assert numbers["gradient/student"] == 0.0
    after = weights(trainer)
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("student"))
    assert any(not torch.equal(after[k], v) for k, v in before.items() if k.startswith("discriminator"))
    assert trainer.scaler.get_scale() == scale / 2
    other = scaled("other")
    other.load_state_dict(trainer.state_dict())
    assert other.scaler.get_scale() == scale / 2


# Trackers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_needs_its_package_and_hears_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f'training.tracker is "{name}".*not installed: pip install'):
        RunLog(tmp_path / "run", tracker=name)
    heard: list[Any] = []
    library = SimpleNamespace(
        init=lambda **how: heard.append(how), log=heard.append, finish=lambda: heard.append("finished")
    )
    monkeypatch.setitem(sys.modules, name, library)
    log = RunLog(tmp_path / "run", tracker=name)
    log(3, {"motion": 0.5})
    log.warn(4, "frozen motion", "it stands still")
    log.close()
    assert heard == [
        {"project": "mcm", "name": "run", "config": {"folder": str(tmp_path / "run")}},
        {"update": 3, "motion": 0.5},
        {"update": 4, "warning": "frozen motion: it stands still"},
        "finished",
    ]
    assert [json.loads(line)["update"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [3, 4]


def test_without_a_tracker_the_log_alone_is_written(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", tracker="none")
    log(1, {"motion": 0.5})
    log.close()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]
