"""The trainer: accumulation, turns, exact resume, golden losses, and what a checkpoint is."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from stage import make_batch
from tiny_trainer import make_trainer, weights

from mcm.data.stream import Stream
from mcm.errors import UserError
from mcm.training.checkpoint import load_state, save_state
from mcm.training.trainer import Schedule, checkpoints, saved_updates

GOLDEN = Path(__file__).parent.parent / "golden" / "losses.json"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("teachers")


@pytest.mark.parametrize(
    "settings", [{}, {"target_decay": 0.9}, {"kind": "full", "target_decay": 0.9}, {"average": 0.15}]
)
def test_interrupted_equals_uninterrupted_bit_for_bit(teachers, tmp_path, settings):
    whole, whole_log = make_trainer(teachers, tmp_path / "whole", **settings)
    whole.run()

    first, first_log = make_trainer(teachers, tmp_path / "parts", **settings)

    def stop(update: int) -> None:
        if update == 2:
            raise RuntimeError("killed")

    first.after_update = stop
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    second, second_log = make_trainer(teachers, tmp_path / "parts", **settings)
    second.run()

    def told(log):
        return [(u, {k: v for k, v in n.items() if "seconds" not in k}) for u, n in log]

    assert told(first_log) + told(second_log) == told(whole_log)
    one, two = weights(whole), weights(second)
    assert all(torch.equal(one[k], two[k]) for k in one)
    kept, resumed = whole.state_dict(), second.state_dict()
    assert kept["stream"] == resumed["stream"]
    for key, value in kept["student"].items():  # the averaged target among them
        assert torch.equal(value, resumed["student"][key])
    assert bool(kept["average"]) == ("average" in settings)
    for key, value in kept["average"].items():
        assert torch.equal(value, resumed["average"][key])


def test_accumulation_is_the_mean_over_micro_batches_for_every_player(teachers, tmp_path):
    """Fault 2 of the official code: the discriminator kept the last micro-batch only."""
    trainer, _ = make_trainer(teachers, tmp_path, accumulation=3)
    sums: dict[str, torch.Tensor] = {}
    seen: list[float] = []
    seed_of = __import__("mcm.training.trainer", fromlist=["_seed"])._seed
    stream = Stream(6, 2, seed=1)
    for micro in range(3):
        rng = torch.Generator().manual_seed(seed_of(7, 0, micro))
        for turn in trainer.method.turns(trainer.players, make_batch(trainer.players, stream.next_batch()), rng):
            chosen = trainer.players.parameters(turn.player)
            total = sum(turn.losses.values())
            seen.append(float(total.detach()))
            found = torch.autograd.grad(total, list(chosen.values()), allow_unused=True)
            for key, g in zip(chosen, found, strict=True):
                if g is not None:
                    sums[f"{turn.player}/{key}"] = sums.get(f"{turn.player}/{key}", 0) + g / 3
    # the spectral norms have moved in the pass above; a fresh trainer starts where that one did
    trainer, _ = make_trainer(teachers, tmp_path, accumulation=3)
    grabbed: dict[str, torch.Tensor] = {}
    for player, optimizer in trainer.optimizers.items():
        chosen = trainer.players.parameters(player)

        def grab(opt, args, kwargs, player=player, chosen=chosen):
            for key, p in chosen.items():
                if p.grad is not None:
                    grabbed[f"{player}/{key}"] = p.grad.clone()

        optimizer.register_step_pre_hook(grab)
    numbers = trainer.step()
    scale = {p: min(1.0, 10.0 / (numbers[f"gradient/{p}"] + 1e-6)) for p in trainer.method.order}
    assert set(grabbed) == set(sums)
    for key, g in grabbed.items():
        torch.testing.assert_close(g, sums[key] * scale[key.split("/")[0]], rtol=1e-4, atol=1e-6)


def test_one_update_is_one_step_of_each_player(teachers, tmp_path):
    """Fault 1 of the official code: with accumulation, updates fired twice as often."""
    trainer, _ = make_trainer(teachers, tmp_path, accumulation=2)
    steps = dict.fromkeys(trainer.method.order, 0)
    for player, optimizer in trainer.optimizers.items():

        def count(opt, args, kwargs, player=player):
            steps[player] += 1

        optimizer.register_step_post_hook(count)
    trainer.step()
    assert steps == {"student": 1, "discriminator": 1}
    assert trainer.stream.state_dict() == _advanced(2)


def _advanced(batches: int) -> dict:
    stream = Stream(6, 2, seed=1)
    for _ in range(batches):
        stream.next_batch()
    return stream.state_dict()


def test_not_a_number_stops_before_it_reaches_the_weights(teachers, tmp_path):
    trainer, _ = make_trainer(teachers, tmp_path)
    before = weights(trainer)
    good = trainer.material
    broken = torch.full((2, 4, 4, 8, 8), math.nan)
    trainer.material = lambda index, rng, base: good(index, rng, base)._replace(z0=broken)
    with pytest.raises(UserError, match=r"update 0.*nan"):
        trainer.run()
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())
    assert [p.name for p in checkpoints(trainer.folder)] == ["update-0000000.safetensors"]  # where it went back to
    assert saved_updates(trainer.folder) == 0


def test_only_the_newest_checkpoints_are_kept(teachers, tmp_path):
    trainer, _ = make_trainer(teachers, tmp_path, updates=6)
    trainer.run()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["update-0000004.safetensors", "update-0000006.safetensors"]


@pytest.mark.parametrize("name", ["lcm", "mcm"])
def test_losses_are_those_of_the_golden_file(teachers, tmp_path, name):
    """A change of the code that means to change nothing changes none of these numbers."""
    trainer, log = make_trainer(teachers, tmp_path, name, updates=3)
    trainer.run()
    found = {str(u): {k: v for k, v in n.items() if "/" not in k and "seconds" not in k} for u, n in log}
    golden = json.loads(GOLDEN.read_text())[name]
    assert found.keys() == golden.keys()
    for update, numbers in golden.items():
        assert found[update] == pytest.approx(numbers, rel=2e-3, abs=1e-5)


def test_schedule_warms_up_and_falls():
    schedule = Schedule(1.0, 10, 110)
    rates = [schedule(u) for u in range(111)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.505)
    assert rates[110] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert Schedule(1.0, 0, 10, "constant")(9) == 1.0


def test_the_schedule_of_a_stage_is_that_of_a_run_of_its_length():
    staged, first, second = Schedule(1.0, 3, 30, begin=5, anew=(15,)), Schedule(1.0, 3, 10), Schedule(1.0, 3, 20)
    assert [staged(u) for u in range(5, 15)] == [first(u) for u in range(10)]
    assert [staged(u) for u in range(15, 36)] == [second(u) for u in range(21)]
    assert staged(2) == first(0)


def test_checkpoints_round_trip_any_tree(tmp_path):
    tree = {
        "a": torch.arange(6).view(2, 3).t(), 3: [1, 2.5, None, True, "x"], "t": (torch.tensor(1.0), {"n": {}}),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }  # fmt: skip
    save_state(tmp_path / "s.safetensors", tree)
    back = load_state(tmp_path / "s.safetensors")
    assert torch.equal(back["a"], tree["a"])
    assert back[3] == tree[3]
    assert back["t"][1] == {"n": {}}
    assert back["half"].dtype == torch.bfloat16
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        save_state(tmp_path / "file" / "s.safetensors", {"a": torch.ones(1)})
    with pytest.raises(TypeError):
        save_state(tmp_path / "t.safetensors", {"a": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path, content):
    (tmp_path / "s.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_state(tmp_path / "s.safetensors")


def test_another_safetensors_file_is_not_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "s.safetensors")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_state(tmp_path / "s.safetensors")
