"""The commands and the Python of the how-to pages and of the reference run, on small recipes and tiny teachers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from snippets import PAGES, ROOT, blocks
from tiny_docs import command, prepare, run_pages, small

START = {"README.md", "docs/index.md", "docs/tutorial.md"}  # test_run_start.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With runs/student and runs/first, which the pages take for granted."""
    made = tmp_path_factory.mktemp("howto")
    prepare(made)
    with pytest.MonkeyPatch.context() as patch, small(patch):
        patch.chdir(made)
        for name in ("student", "first"):
            assert command(["mcm", "distill", "pocket-animatediff", "--out", f"runs/{name}"]) == 0
    return made


HOW_TO = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "how-to").glob("*.md"))


@pytest.mark.parametrize("page", HOW_TO)
def test_how_to(folder: Path, page: str) -> None:
    assert run_pages(folder, page), f"nothing on {page} is run"


def test_what_the_how_tos_made(folder: Path) -> None:
    run_pages(folder, *(p for p in HOW_TO if not (folder / "exports" / "merged").is_dir()))
    made = {path.name for path in (folder / "exports").iterdir()}
    assert {"diffusers", "peft", "merged", "comfyui", "python"} <= made
    assert json.loads((folder / "wrist.json").read_text()), "the pose that the page writes"
    assert list((folder / "videos" / "pose").glob("*.mp4"))


def test_other_pages(folder: Path) -> None:
    rest = [page for page in PAGES if page not in START and page not in HOW_TO]
    wanted = [b.place for page in rest for lang in ("bash", "python") for b in blocks(lang, page) if not b.apart]
    done = run_pages(folder, *rest)
    assert sorted(done) == sorted(wanted)
    assert any(place.startswith("docs/reference/python.md") for place in done)
