"""`mcm prepare`: what is printed of what was found, and of a rank that is done before the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import make_material

from mcm.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def run(place: Path, out: Path, *more: str) -> int:
    words = ["prepare", str(place / "clips"), "--teacher", str(place / "animatediff"), "--out", str(out)]
    with pytest.raises(SystemExit) as left:
        main([*words, "--frames", "4", *(() if "--workers" in more else ("--workers", "0")), *more])
    return int(str(left.value.code))


def test_what_was_found_and_what_was_left_out(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, tmp_path / "out") == 0
    said = capsys.readouterr().out
    for line in ("found 4", "usable 3", "size 24x32 3", "frames per second 8 to 8, median 8"):
        assert line in " ".join(said.split())
    assert "left out broken.mp4: damaged or not a film" in " ".join(said.split())
    assert "mcm distill RECIPE --videos" in " ".join(said.split())


def test_json_for_programs(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finished"]
    assert (told["found"], told["used"]) == (4, 3)
    assert told == {"finished": True, **json.loads((tmp_path / "out" / "report.json").read_text())}


def test_a_rank_that_is_done_first(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = tmp_path / "out"
    assert run(place, shared, "--shard-size", "2", "--rank", "1", "--world-size", "2") == 0
    assert "rank 1 of 2 is done: 1 of 2 shards stand" in " ".join(capsys.readouterr().out.split())
    assert not (shared / "index.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "-1"], "expected at least 0"),
        (["--timeout", "0"], "more than 0 s"),
        (["--stride", "2", "--fps", "3"], "give one of them"),
        (["--size", "7x7"], "size"),
        (["--jpeg-quality", "101"], "a whole number from 1 to 100"),
    ],
)
def test_what_is_refused_before_any_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run(place, tmp_path / "out", *words) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists() or words[0] == "--size"
