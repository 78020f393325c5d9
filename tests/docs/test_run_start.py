"""The commands and the Python of the README and of the tutorial run, in their order, on small recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_docs import prepare, run_pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("start")
    prepare(made)
    return made


def test_readme(folder: Path) -> None:
    assert len(run_pages(folder, "README.md")) >= 3
    assert (folder / "runs" / "mine" / "student" / "card.json").is_file()
    assert "<svg" in (folder / "scores" / "report.html").read_text()


def test_tutorial(folder: Path) -> None:
    assert len(run_pages(folder, "docs/index.md", "docs/tutorial.md")) >= 9
    for run in ("first", "toon", "own"):
        assert (folder / "runs" / run / "student" / "card.json").is_file()
    assert len(list((folder / "runs").glob("own*"))) == 2, "a changed setting is another run"
    found = json.loads((folder / "runs" / "mine" / "sources.json").read_text())
    assert "broken.mp4" in json.dumps(found), "what was left out is named"
    assert len(list((folder / "videos" / "mine").glob("*.mp4"))) == 2
    assert (folder / "exports" / "first" / "model_index.json").is_file()
