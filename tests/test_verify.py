"""mcm verify-resume: real runs, a real SIGKILL, and a difference that is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import inside, make_material, recipe

from mcm.errors import UserError
from mcm.verify import Verdict, first_difference, leaves, verify_resume

ROOT = Path(__file__).parent.parent


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """The command, on the paper's method with an averaged target and pictures of films."""
    place = make_material(tmp_path / "material")
    chosen = recipe(place, method={"name": "mcm", "target_decay": 0.9}, training__batch=1)
    chosen.save(tmp_path / "tiny.yaml")
    out = tmp_path / "kept"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mcm", "verify-resume", str(tmp_path / "tiny.yaml"), "--updates", "6", "--json",
         "--out", str(out)], env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert (verdict["exact"], verdict["different"]) == (True, None)
    assert (verdict["killed_at"], verdict["resumed_from"]) == (5, 4)
    assert verdict["compared"] > 100
    assert inside(out) == {"recipe.yaml", "cache", "uninterrupted", "interrupted"}


def test_the_first_difference_is_named() -> None:
    state = {"student": {"a": torch.ones(2)}, "optimizers": {"student": [{"step": 3}, torch.zeros(2, 2)]}}
    one = dict(leaves(state))
    assert list(one) == ["student.a", "optimizers.student.0.step", "optimizers.student.1"]
    assert first_difference(one, dict(one)) is None
    assert first_difference(one, one | {"student.a": torch.tensor([1.0, 1.0000001])}) == "student.a"
    assert first_difference(one, one | {"optimizers.student.0.step": 4}) == "optimizers.student.0.step"
    assert first_difference(one, one | {"more": 1}) == "more"
    assert first_difference(one | {"more": 1}, one) == "more"
    # 0 and -0 are equal numbers and other bits; NaN is equal to itself here
    assert first_difference({"z": torch.tensor(0.0)}, {"z": torch.tensor(0.0)}) is None
    assert first_difference({"z": torch.zeros(1)}, {"z": -torch.zeros(1)}) == "z"
    assert first_difference({"z": torch.full((1,), torch.nan)}, {"z": torch.full((1,), torch.nan)}) is None
    assert first_difference({"z": torch.zeros(2)}, {"z": torch.zeros(2, dtype=torch.float64)}) == "z"


def test_the_verdict_is_one_line() -> None:
    assert str(Verdict(6, 5, 4, 120, None)).startswith("resuming is exact: killed at update 5, resumed from update 4")
    bad = str(Verdict(6, 5, 4, 120, "student.a"))
    assert "NOT exact" in bad
    assert "student.a" in bad


def test_what_cannot_be_verified(tmp_path: Path) -> None:
    place = make_material(tmp_path / "material")
    with pytest.raises(UserError, match="at least 3"):
        verify_resume(recipe(place), updates=2)
    with pytest.raises(UserError, match="not empty"):
        verify_resume(recipe(place), folder=place)
    with pytest.raises(UserError, match=r"the run to be verified failed: training\.batch is 9, but there are only 3"):
        verify_resume(recipe(place, training__batch=9), updates=3, folder=tmp_path / "runs")
