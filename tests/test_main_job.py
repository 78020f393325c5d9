"""The main job on real input: camera footage and pictures -> `mcm distill` -> `mcm generate` -> an MP4.

Real processes, the real command, the zoo's teacher; the footage is a sample film cut into clips with captions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mcm.data.video import probe, read_clip, write_video
from mcm.pocket import zoo

ROOT = Path(__file__).parent.parent


def mcm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, offline."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, "-m", "mcm", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )


def film(name: str) -> Path:
    files = metadata.files("iscc-samples") or []
    return next(Path(str(f.locate())) for f in files if f.name == name)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clips/` with four pieces of camera footage, captions, one broken file; `pictures/` with three photographs."""
    folder = tmp_path_factory.mktemp("footage")
    (folder / "clips").mkdir()
    for k in range(4):
        piece = read_clip(film("demo.mp4"), 24, (72, 96), fps=8, start=4.0 + 6 * k)
        pixels = piece.permute(1, 2, 3, 0).add(1).mul(127.5).round().byte().numpy()
        write_video(folder / "clips" / f"piece{k}.mp4", pixels, 8)
        (folder / "clips" / f"piece{k}.txt").write_text(f"piece {k} of a film about the sea")
    (folder / "clips" / "broken.mp4").write_bytes(b"not a film")
    (folder / "clips" / "broken.txt").write_text("nothing")
    (folder / "pictures").mkdir()
    for name in ("demo.jpg", "demo.png", "demo.bmp"):
        (folder / "pictures" / name).write_bytes(film(name).read_bytes())
    return folder


@pytest.mark.parametrize("teacher", zoo.teachers())
def test_footage_to_student_to_video(footage: Path, tmp_path: Path, teacher: str) -> None:
    run = tmp_path / "run"
    done = mcm(
        "distill", teacher, "--videos", str(footage / "clips"), "--images", str(footage / "pictures"),
        "--out", str(run),
        "--steps", "2", "--training.batch", "2", "--training.preview-every", "0", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sources = json.loads((run / "sources.json").read_text())
    dropped = [d for report in sources for d in report["dropped"]]
    assert any("broken.mp4" in str(d) for d in dropped), sources
    card = json.loads((run / "student" / "card.json").read_text())
    assert card["teacher"]["name"] == teacher
    assert card["method"] == "mcm"
    assert card["provenance"]["recipe"]["method"]["adversary"] == "pictures"

    made = mcm(
        "generate", str(run), "--prompt", "a person in a red shirt and blue trousers waving in a park",
        "--out", str(tmp_path / "videos"), "--sheet", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (video,) = (tmp_path / "videos").glob("*.mp4")
    info = probe(video)
    assert info.size == (64, 64)
    assert info.frames == 8
    assert json.loads(video.with_suffix(".json").read_text())["steps"] == 4
    assert (tmp_path / "videos" / "sheet.png").exists()

    again = mcm("distill", str(run), cwd=tmp_path)
    assert again.returncode == 0, again.stderr  # finished: nothing is done twice
    other = mcm("distill", teacher, "--out", str(run), "--steps", "3", cwd=tmp_path)
    assert other.returncode != 0
    assert len(other.stderr.strip().splitlines()) == 1
    assert str(run) in other.stderr


def test_a_folder_without_captions_is_one_clear_line(footage: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "film.mp4").write_bytes((footage / "clips" / "piece1.mp4").read_bytes())
    done = mcm("distill", "pocket-animatediff", "--videos", str(bare), "--out", str(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("mcm: ")]  # the rest tells of progress
    assert len(errors) == 1
    assert done.stderr.strip().endswith(errors[0])
    assert "Traceback" not in done.stderr
    assert "caption" in errors[0]
    assert not (tmp_path / "run" / "student").exists()
