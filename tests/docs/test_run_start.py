"""The commands and the Python of the README run on the laboratory's networks, those of the tutorial on tiny ones."""

from __future__ import annotations

from pathlib import Path

from tiny_docs import prepare, run_pages


def test_readme(tmp_path: Path) -> None:
    prepare(folder := tmp_path)
    assert len(run_pages(folder, "README.md", tiny=False)) >= 3
    assert (folder / "runs" / "mine" / "student" / "card.json").is_file()
    assert "<svg" in (folder / "scores" / "report.html").read_text()


def test_tutorial(tmp_path: Path) -> None:
    prepare(folder := tmp_path)
    assert len(run_pages(folder, "docs/index.md", "docs/tutorial.md")) >= 9
    for run in ("first", "toon", "own"):
        assert (folder / "runs" / run / "student" / "card.json").is_file()
    assert len(list((folder / "runs").glob("own*"))) == 2, "a changed setting is another run"
    assert "broken.mp4" in (folder / "runs" / "mine" / "sources.json").read_text(), "what was left out is named"
    assert len(list((folder / "videos" / "mine").glob("*.mp4"))) == 2
    assert (folder / "exports" / "first" / "model_index.json").is_file()
