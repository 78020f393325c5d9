"""Rows, their file, their table and their provenance."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mcm.errors import UserError
from mcm.evaluation import report as report_module
from mcm.evaluation.report import Report, Row, git_state, markdown_table, provenance


def row(**changes: object) -> Row:
    values: dict[str, object] = {
        "teacher": "pocket-animatediff",
        "method": "mcm",
        "sampler": "consistency",
        "steps": 4,
        "guidance": 1.0,
        "n": 64,
        "fvd": 123.456,
        "clipsim": 29.5,
        "motion_ratio": 0.98,
        "fid": None,
        "intervals": {"fvd": [110.0, 140.0]},
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def test_a_row_in_the_file_has_exactly_the_promised_fields(tmp_path: Path) -> None:
    Report([row()]).save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert set(content) == {"rows", "provenance"}
    promised = "teacher method sampler steps guidance n fvd clipsim motion_ratio fid intervals"
    assert list(content["rows"][0]) == promised.split()
    assert content["rows"][0]["fid"] is None


def test_saved_and_loaded_reports_are_equal(tmp_path: Path) -> None:
    report = Report([row(), row(steps=8, seconds=1.5, notes=("no motion ratio: still",))], {"date": "today"})
    path = tmp_path / "deep" / "report.json"
    report.save(path)
    assert Report.load(path) == report
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    odd = row(fvd=math.nan, clipsim=np.float64(3.5), intervals={"motion_ratio": (np.float32(0.5), math.inf)})
    Report([odd], {"loss": math.nan, "count": np.int64(3)}).save(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    loaded = Report.load(tmp_path / "r.json")
    assert loaded.rows[0].fvd is None
    assert loaded.rows[0].clipsim == 3.5
    assert loaded.rows[0].intervals == {"motion_ratio": [0.5, None]}
    assert loaded.provenance == {"loss": None, "count": 3}


def test_a_failed_write_leaves_the_old_report_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    Report([row()]).save(path)
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write the report .*: No space left on device"):
        Report([row(), row(steps=1)]).save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_merge_replaces_rows_of_the_same_setting_in_their_place() -> None:
    report = Report([row(steps=1), row(steps=2), row(steps=4)], {"a": 1})
    merged = report.merge([row(steps=2, guidance=1, fvd=7.0), row(steps=8), row(steps=4, method="lcm")])
    assert [(r.steps, r.method, r.fvd) for r in merged.rows] == [
        (1, "mcm", 123.456),
        (2, "mcm", 7.0),
        (4, "mcm", 123.456),
        (8, "mcm", 123.456),
        (4, "lcm", 123.456),
    ]
    assert merged.provenance == {"a": 1}
    assert len(report.rows) == 3


def test_files_that_are_no_report_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(UserError, match="cannot read"):
        Report.load(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="is no report"):
        Report.load(path)
    good = row().to_dict()
    path.write_text(json.dumps({"rows": [{**good, "fdv": 1}]}))
    with pytest.raises(UserError, match=r"'fdv'.*did you mean 'fvd'"):
        Report.load(path)
    del good["teacher"], good["n"]
    path.write_text(json.dumps({"rows": [good]}))
    with pytest.raises(UserError, match="lacks teacher, n"):
        Report.load(path)


def test_table() -> None:
    rows = [row(), row(method="a|b", fvd=math.nan, notes=("still",))]
    table = markdown_table(rows, ["method", "steps", "fvd", "motion_ratio", "fid", "notes"], intervals=True)
    assert table.splitlines() == [
        "| method | steps | fvd | motion ratio | fid | notes |",
        "|---|---:|---:|---:|---:|---|",
        "| mcm | 4 | 123.5 [110.0, 140.0] | 0.98 | – | – |",
        "| a\\|b | 4 | – | 0.98 | – | still |",
    ]
    assert "[" not in markdown_table(rows, ["fvd"])
    with pytest.raises(UserError, match="did you mean 'clipsim'"):
        markdown_table(rows, ["clip_sim"])


def test_provenance_says_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/mcm", "evaluate", "student"])
    found = provenance({"fvd": {"frames": 8}})
    assert found["command"] == ["mcm", "evaluate", "student"]
    assert found["protocols"] == {"fvd": {"frames": 8}}
    assert found["python"].startswith("3.")
    assert found["torch"] is not None
    assert found["transformers"] is not None
    assert found["diffusers"] is not None
    assert found["cpus"] >= 1
    assert found["date"].endswith("+00:00")
    json.dumps(found, allow_nan=False)


def test_commit_is_that_of_the_checkout_which_tracks_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    tracked, other = tmp_path / "code.py", tmp_path / "installed.py"
    tracked.write_text("x = 1\n")
    other.write_text("")
    assert git_state(tracked) == {"commit": None, "modified": None}
    git("add", "code.py")
    git("commit", "-q", "-m", "first")
    assert git_state(tracked) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    tracked.write_text("x = 2\n")
    assert git_state(tracked)["modified"] is True
    assert git_state(other) == {"commit": None, "modified": None}
    assert git_state(tmp_path / "no" / "such.py") == {"commit": None, "modified": None}


def test_a_missing_git_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state(Path(__file__)) == {"commit": None, "modified": None}


def test_reading_reports_loads_no_torch() -> None:
    code = "import sys, mcm.evaluation.report; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
