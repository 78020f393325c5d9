"""Several real processes: the same gradients and weights as one, and they end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_program import LOOKS, MICRO_BATCHES, make, run
from stage import make_players
from tiny import tiny_look
from tiny_run import make_material, recipe
from tiny_trainer import make_trainer

from mcm.methods import method
from mcm.training.checkpoint import load_state
from mcm.training.ranks import Joined, LostRankError, Ranks, alone_by_mistake, announced
from mcm.training.trainer import saved_updates

ROOT = Path(__file__).parent.parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    make_players(folder, method("mcm"))  # writes them, before several processes would at a time
    for seed, look in enumerate(LOOKS):
        tiny_look(folder / look, seed)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join(str(ROOT / part) for part in ("src", "tests"))
    set_so = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
    return {**os.environ, "PYTHONPATH": paths, **set_so, **more}


def launch(count: int, *arguments: str | Path, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, str(count), *map(str, arguments)], env=environment(), capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of trials by this process."""
    folder = tmp_path_factory.mktemp("alone")
    for trial in ("lora", "full", "bases"):
        run(teachers, folder, trial, Ranks())
    return folder


def launched(count: int, teachers: Path, folder: Path, *trials: str) -> Path:
    done = launch(count, ROOT / "tests" / "ranks_program.py", teachers, folder, *trials)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two(teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two processes, and some that only they can do."""
    return launched(2, teachers, tmp_path_factory.mktemp("two"), "lora", "full", "bases", "broken", "resumed:2")


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(tree, list | tuple):
        for key, value in enumerate(tree):
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name, tree


def check_same(
    one: dict[str, Any], many: dict[str, Any], players: tuple[str, ...] = ("student", "discriminator")
) -> None:
    assert one["gradients"].keys() == many["gradients"].keys()
    assert {name.split("/")[0] for name in one["gradients"]} == {*players}
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(many["gradients"][name], gradient, atol=1e-5, rtol=0, msg=name)
    single, shared = dict(leaves(one["state"])), dict(leaves(many["state"]))
    assert single.keys() == shared.keys()
    for name, value in single.items():
        if isinstance(value, torch.Tensor):  # weights, averages, the state of the optimizers
            torch.testing.assert_close(shared[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert shared[".stream.consumed"] == single[".stream.consumed"]
    assert shared[".micro_batches"] == single[".micro_batches"] == MICRO_BATCHES
    losses = [[{k: v for k, v in n.items() if "seconds" not in k} for _, n in each["losses"]] for each in (one, many)]
    for update, (first, second) in enumerate(zip(*losses, strict=True)):
        assert second == pytest.approx(first, rel=2e-3, abs=1e-4), update


@pytest.mark.parametrize("trial", ["lora", "full"])
def test_an_update_is_the_same_by_one_process_and_by_two(alone: Path, two: Path, trial: str) -> None:
    check_same(*(load_state(folder / f"{trial}.safetensors") for folder in (alone, two)))


def test_with_several_bases_an_update_is_the_same_by_one_process_and_by_two(alone: Path, two: Path) -> None:
    one, many = (load_state(folder / "bases.safetensors") for folder in (alone, two))
    check_same(one, many, ("temporal",))  # of the first update, which the discriminator has no part in
    assert one["state"]["discriminator"]["bases"].any()


def test_an_update_is_the_same_by_four(alone: Path, teachers: Path, tmp_path: Path) -> None:
    launched(4, teachers, tmp_path, "lora")
    check_same(*(load_state(folder / "lora.safetensors") for folder in (alone, tmp_path)))


def test_nan_on_one_rank_takes_all_back(two: Path) -> None:
    state = load_state(two / "broken.safetensors")["state"]
    assert (state["update"], state["rollbacks"]) == (3, 1)
    assert all(v.isfinite().all() for _, v in leaves(state) if isinstance(v, torch.Tensor))


def test_one_process_goes_on_where_two_stopped(two: Path, teachers: Path, tmp_path: Path) -> None:
    """Two ranks with two micro-batches each; one process then takes all four."""
    folder = two / "resumed"
    assert saved_updates(folder) == 2
    second, _ = make(teachers, two, "resumed", Ranks())
    second.micro_batches = 1  # the checkpoint knows better
    second.run()
    assert second.micro_batches == MICRO_BATCHES
    whole, _ = make(teachers, tmp_path, "resumed", Ranks())
    whole.run()
    assert second.stream.state_dict() == whole.stream.state_dict()
    for name, value in whole.players.student.state_dict().items():
        torch.testing.assert_close(second.players.student.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_a_number_of_ranks_that_cannot_share_an_update_is_refused(teachers: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(teachers, tmp_path, updates=4, accumulation=4, batch=1)
    state = trainer.state_dict()
    trainer.ranks = Ranks(0, 3)
    with pytest.raises(Exception, match=r"4 micro-batches .*, which 3 ranks cannot share evenly"):
        trainer.load_state_dict(state)


# The command ----------------------------------------------------------------------------------------------------------


def mine(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("mcm: ")]


def test_sigterm_saves_on_all_ranks_and_one_process_ends_the_run(place: Path, tmp_path: Path) -> None:
    out, chosen = tmp_path / "run", recipe(place, method={"name": "lcm"}, training__updates=400, training__batch=1)
    chosen.save(tmp_path / "recipe.yaml")
    command = [*TORCHRUN, "2", "-m", "mcm", "distill", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    command += ["--training.save-every", "1000"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not (out / "log.jsonl").exists() or len((out / "log.jsonl").read_text().splitlines()) < 2:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, told = process.communicate(timeout=120)
    assert "2 processes" in said
    assert "processes at work: 2/2" in told
    assert mine(told) == ["mcm: stopped; run the same command again to go on"]
    saved = saved_updates(out / "checkpoints")
    assert 2 <= saved < 400
    assert load_state(out / "checkpoints" / f"update-{saved:07d}.safetensors")["micro_batches"] == 2


def test_what_fails_on_every_rank_is_said_once(place: Path, tmp_path: Path) -> None:
    recipe(place, training__precision="bf16").save(tmp_path / "recipe.yaml")
    done = launch(2, "-m", "mcm", "distill", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert done.returncode == 1
    (line,) = mine(done.stderr)
    assert "of 2: training.precision is 'bf16', but this machine computes on its CPU" in line
    assert "Traceback" not in done.stderr.split("elastic")[0]


def free_port() -> str:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return str(place.getsockname()[1])


def test_a_missing_rank_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostRankError, match=r"rank 0 of 2: not all 2 ranks came together at 127.*within 1 s") as error:
        Joined(1.0).__enter__()
    assert "\n" not in str(error.value)


def test_half_an_announcement_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception, match=r"WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT is not set: .*torchrun"):
        announced()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"}, "accelerate launch started ONE process"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun announces 4 processes"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "4"}, None),
        ({}, None),
    ],
)
def test_one_process_where_several_were_meant(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], words: str | None
) -> None:
    for name in ("MASTER_ADDR", "WORLD_SIZE", "ACCELERATE_USE_CPU", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    found = alone_by_mistake()
    assert (found is None) == (words is None)
    if words:
        assert words in str(found)
        assert "torchrun" in str(found)
