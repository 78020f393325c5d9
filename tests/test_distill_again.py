"""A run that was stopped and started again ends as one that was not, to the bit; and its folder stays its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import ADAPTER, Told, inside, make_material, recipe, settings

from mcm.distill import distill
from mcm.errors import UserError

ROOT = Path(__file__).parent.parent

METHOD = {"name": "mcm", "target_decay": 0.9}
UPDATES = 8

RUN = """
import json, sys
from mcm.distill import distill
from mcm.recipe import Recipe
distill(Recipe.model_validate(json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


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
        distill(chosen, out, Told(stop=3))
    assert inside(out / "checkpoints") == {"update-0000003.safetensors"}
    sources = (out / "sources.json").read_text()
    told = Told()
    distill(chosen, out, told)
    assert "encoding the clips" not in told.phases
    check_same(out, uninterrupted)
    assert (out / "sources.json").read_text() == sources  # what was left out stays on record


def test_settings_may_not_change_between_the_parts_of_a_run(place: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    for folder, stride in ((out, 1), (other, 2)):
        with pytest.raises(KeyboardInterrupt):
            distill(recipe(place, data__stride=stride), folder, Told(stop=1))
    cache = (out / "cache" / "latents.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"another run.*data\.stride is 1 there and 2 here"):
        distill(recipe(place, data__stride=2), out)
    assert (out / "cache" / "latents.safetensors").read_bytes() == cache

    # the recipe is the same, but the cache under it was exchanged
    shutil.rmtree(out / "cache")
    shutil.copytree(other / "cache", out / "cache")
    with pytest.raises(UserError, match=r"latents.*are others: made with stride 2, asked for 1"):
        distill(recipe(place, data__stride=1), out)

    (path,) = (other / "checkpoints").glob("*")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        distill(recipe(place, data__stride=2), other)
