"""Worker processes: results in order, and what crashes or hangs costs its own place only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from mcm.data.workers import AHEAD, Workers


def work(folder: Path, item: int) -> int:
    """Runs in a worker. 13 crashes it, 17 never ends; every item leaves a file."""
    (folder / str(item)).touch()
    if item == 13:
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == 17:
        time.sleep(3600)
    return item * item


def lost(item: int, why: str) -> str:
    return f"{item}: {why}"


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_order_and_few_are_ahead(tmp_path, count):
    begun: list[int] = []

    def items():
        for k in range(12):
            begun.append(k)
            yield k

    with Workers(partial(work, tmp_path), count, 60, lost) as pool:
        for k, result in enumerate(pool.map(items())):
            assert result == k * k
            assert len(begun) <= k + 1 + count * AHEAD


def test_an_item_that_ends_its_process_is_named_and_the_others_are_done(tmp_path):
    with Workers(partial(work, tmp_path), 2, 60, lost) as pool:
        results = list(pool.map([10, 11, 12, 13, 14, 13, 15]))
    crashed = "13: decoder crashed: the film ends the process that reads it"
    assert results == [100, 121, 144, crashed, 196, crashed, 225]


def test_an_item_that_never_ends_is_given_up(tmp_path):
    with Workers(partial(work, tmp_path), 2, 60, lost) as pool:  # the server that workers are forked from starts once
        assert list(pool.map([0])) == [0]
    with Workers(partial(work, tmp_path), 2, 3, lost) as pool:
        results = list(pool.map([1, 17, 2, 3]))
    assert results == [1, "17: decoder stuck: not done after 3 s", 4, 9]


PROGRAM = """
import sys, time
from functools import partial
from pathlib import Path
from test_workers import lost, work
from mcm.data.workers import Workers
if __name__ == "__main__":
    with Workers(partial(work, Path(sys.argv[1])), 2, 600, lost) as pool:
        for result in pool.map([17, 17]):
            pass
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = subprocess.Popen([sys.executable, str(program), str(tmp_path)], env={**os.environ, "PYTHONPATH": path})
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "17").exists():
            assert time.monotonic() < until
            assert run.poll() is None
            time.sleep(0.05)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        run.kill()
        run.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
