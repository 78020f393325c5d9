"""The figures of README.md and docs/results.md are those of the JSON files in benchmarks/."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def test_pages_and_benchmarks_say_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def row(method: str, steps: int, fvd: float, **more: Any) -> dict[str, Any]:
    return {
        "teacher": "pocket-modelscope", "method": method, "sampler": "consistency", "steps": steps, "guidance": 1.0,
        "n": 512, "fvd": fvd, "clipsim": 80 + fvd, "motion_ratio": 1.0, "action_accuracy": 0.9, "fid": 2.0,
        "fids": {"studio": 2.0, "toon": 3.0, "relief": 4.0}, "intervals": {"fvd": [fvd - 0.1, fvd + 0.1]}, **more,
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("results")
    rows = [row("dpm++", 25, 0.25, seed=None, guidance=3.0)]
    rows += [row("lcm", n, value, seed=0) for n, value in zip((1, 2, 4, 8), (0.8, 0.5, 0.4, 0.3), strict=True)]
    rows += [row("mcm", n, value, seed=0) for n, value in zip((1, 2, 4, 8), (0.4, 0.3, 0.3, 0.31), strict=True)]
    rows += [row("mcm", 1, 0.6, seed=1), row("mcm+toon", 4, 2.0, fids={"toon": 0.5}, seed=0)]
    rows += [row("quarter-mcm", 4, 0.7, seed=0), row("mcm-large", 4, 0.9, seed=0, seconds=3.0)]
    file = tmp_path / "pocket.json"
    file.write_text(json.dumps({"rows": rows, "provenance": {"updates": 100, "systems": {}}}))
    monkeypatch.setattr(module, "FILE", file)
    yield module
    sys.modules.pop("results")


def test_the_short_table_has_the_best_of_a_column_in_bold(results: ModuleType) -> None:
    text = results.short()
    lcm, mcm, other = (line for line in text.splitlines() if line.startswith(("| lcm", "| mcm")))
    assert lcm.startswith("| lcm | 0 | 0.80 | 0.50 | 0.40 | **0.30** | **80.8** |")
    assert mcm.startswith("| mcm | 0 | **0.40** | **0.30** | **0.30** | 0.31 |")
    assert other.startswith("| mcm | 1 | 0.60 | - | - | - |")
    assert "25 steps of DPM++, guidance 3: FVD 0.25 (0.15-0.35)" in text
    assert "toon" not in text
    assert "quarter" not in text


def test_ratios_are_of_one_training_seed_beside_the_papers(results: ModuleType) -> None:
    assert results.ratios().splitlines()[2:] == [
        "| pocket-modelscope | 0 | 0.50 | 0.60 | 0.75 | 1.03 |",
        "| pocket-modelscope | the paper's | 0.46 | 0.53 | 0.58 | 0.67 |",
    ]


def test_pictures_ablations_and_size_have_tables_of_their_own(results: ModuleType) -> None:
    plain, learned = (line for line in results.pictures().splitlines() if "toon" in line)
    assert plain.startswith("| pocket-modelscope | toon | mcm | 3.00 | 3.00 | 3.00 | 3.00 | 3.00 |")
    assert learned.startswith("| pocket-modelscope | toon | mcm+toon | - | - | 0.50 | - | 3.00 |")
    assert results.ablations().splitlines()[-1].startswith("| mcm | - | 0.70 (0.60-0.80) |")
    own = "| pocket-modelscope | mcm-large | - | 4 | 512 | 0.900 (0.800-1.000) | 80.9 | 0.900 |"
    assert results.large().splitlines()[-1].startswith(own)


def test_nothing_measured_is_said(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FILE", tmp_path / "none.json")
    made = [results.short(), *(make() for make in results.BLOCKS.values())]
    assert made == [results.MISSING] * 9


def test_what_was_measured_names_no_place_of_one_machine() -> None:
    absolute = re.compile(r'"(?:/|[A-Za-z]:\\\\)[^"]*"')
    files = sorted((ROOT / "benchmarks").rglob("*.json"))
    assert len(files) > 8
    assert {str(file): named for file in files if (named := absolute.findall(file.read_text()))} == {}
