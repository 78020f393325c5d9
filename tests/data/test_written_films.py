"""Films, sheets and comparisons that are written: what comes back, and what a full disk leaves behind."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from PIL import Image

from mcm.data.encode import as_pixels, write_bytes
from mcm.data.video import compare_gif, contact_sheet, probe, read_clip, write_video
from mcm.errors import UserError


def moving(frames: int = 8, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """A white bar that moves over a dark, coloured ground: uint8 (T, H, W, 3)."""
    video = np.full((frames, *size, 3), (20, 60, 100), np.uint8)
    for k in range(frames):
        video[k, :, 4 * k : 4 * k + 8] = 240
    return video


def as_clip(video: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(video).permute(3, 0, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize(("suffix", "error"), [(".mp4", 0.04), (".gif", 0.02), (".apng", 1e-6)])
def test_a_film_comes_back_as_it_was_written(tmp_path, suffix, error):
    video = moving()
    path = write_video(tmp_path / "new" / f"film{suffix}", video, fps=8)
    assert path.parent.is_dir()
    assert probe(path).fps == pytest.approx(8)
    assert probe(path).frames == 8
    assert probe(path).seconds == pytest.approx(1.0)
    back = read_clip(path, 8, (32, 48))
    assert float((back - as_clip(video)).abs().mean()) < error
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_webp_keeps_frames_and_times(tmp_path):
    video = moving()
    path = write_video(tmp_path / "film.webp", torch.from_numpy(video), fps=7)
    with Image.open(path) as image:
        assert image.n_frames == 8
        held = []
        for k in range(8):
            image.seek(k)
            image.load()
            held.append(image.info["duration"])
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - video[k]).mean() < 6
    assert sum(held) == round(8000 / 7)


@pytest.mark.parametrize("fps", [3.0, 12.0, 29.97, 60.0])
def test_a_gif_keeps_the_length_of_the_film(tmp_path, fps):
    path = write_video(tmp_path / "film.gif", moving(10), fps=fps)
    assert probe(path).seconds == pytest.approx(10 / fps, abs=0.01)


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (2, 5)])
def test_odd_sizes_gain_a_row_and_a_column_in_mp4(tmp_path, size):
    video = np.zeros((3, *size, 3), np.uint8)
    video[:, :, -1] = 255
    path = write_video(tmp_path / "film.mp4", video, fps=8)
    height, width = size[0] + size[0] % 2, size[1] + size[1] % 2
    assert probe(path).size == (height, width)
    assert read_clip(path, 1, (height, width))[:, 0, :, -1].min() > 0.8  # the edge goes on
    assert probe(write_video(tmp_path / "film.gif", video, fps=8)).size == size


def test_long_and_short_films_have_their_index_in_front(tmp_path):
    for frames in (1, 700):
        path = write_video(tmp_path / "film.mp4", np.zeros((frames, 16, 16, 3), np.uint8), fps=24)
        data = path.read_bytes()
        assert 0 < data.index(b"moov") < data.index(b"mdat")
        assert probe(path).frames == frames


def test_as_pixels_is_the_inverse_of_reading():
    video = torch.arange(256, dtype=torch.uint8).repeat(3)[: 3 * 2 * 4 * 8].reshape(2, 4, 8, 3)
    clip = video.permute(3, 0, 1, 2).float() / 127.5 - 1
    assert torch.equal(as_pixels(clip), video)
    assert torch.equal(as_pixels(clip[:, 0]), video[0])
    assert as_pixels(torch.full((3, 1, 2, 2), 1.7)).unique().tolist() == [255]
    with pytest.raises(ValueError, match="expected float"):
        as_pixels(video)


def test_wrong_names_and_shapes(tmp_path):
    with pytest.raises(UserError, match=r"film\.mp5.*expected.*\.mp4.*did you mean '\.mp4'"):
        write_video(tmp_path / "film.mp5", moving(), 8)
    with pytest.raises(ValueError, match="expected uint8"):
        write_video(tmp_path / "film.mp4", moving().astype(np.float32), 8)
    with pytest.raises(ValueError, match="expected uint8"):
        write_video(tmp_path / "film.mp4", moving()[:0], 8)
    with pytest.raises(ValueError, match="fps"):
        write_video(tmp_path / "film.mp4", moving(), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".apng"])
def test_an_impossible_place_is_one_line(tmp_path, suffix):
    """Under a file no folder can be made; over a folder no file can be put; /proc takes nothing."""
    (tmp_path / "file").write_text("here")
    (tmp_path / f"folder{suffix}").mkdir()
    for path in (
        tmp_path / "file" / f"a{suffix}",
        tmp_path / f"folder{suffix}",
        f"/proc/a{suffix}",
        tmp_path / ("a" * 300 + suffix),
    ):
        with pytest.raises(UserError, match="cannot write") as caught:
            write_video(path, moving(2), 8)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", f"folder{suffix}"]


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(tmp_path):
    """A limit on the size of files fails in the middle of writing, as a full disk does."""
    old = write_bytes(tmp_path / "film.gif", b"old")
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*File too large"):
            write_video(old, noise, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


def colours(path, frame: int = 0) -> np.ndarray:
    with Image.open(path) as image:
        image.seek(frame)
        return np.asarray(image.convert("RGB")).astype(int)


def flat(colour: tuple[int, int, int], frames: int = 6, size: tuple[int, int] = (40, 40)) -> np.ndarray:
    return np.tile(np.array(colour, np.uint8), (frames, *size, 1))


def test_a_sheet_shows_every_cell_and_writes_its_labels(tmp_path):
    shown = {(200, 0, 0): 0, (0, 200, 0): 0, (0, 0, 200): 0, (200, 200, 0): 0}
    films = [flat(colour) for colour in shown]
    films[1] = as_clip(films[1])  # floats are taken as well
    path = contact_sheet(
        tmp_path / "sheet.png",
        [[films[0], films[1]], [films[2], films[3][0]]],
        ["a very long prompt that has to be broken into several lines to fit", "short"],
        ["teacher", "student"],
        frames_per_cell=3,
        scale=2,
    )
    page = colours(path)
    for colour, frames in zip(shown, (3, 3, 3, 1), strict=True):
        found = (np.abs(page - np.array(colour)).max(2) == 0).sum()
        assert found == frames * 80 * 80
    left = page[:, : np.flatnonzero((page == (200, 0, 0)).all(2).any(0))[0]]
    assert (left < 100).all(2).sum() > 300, "no letters in the margin"
    bare = colours(contact_sheet(tmp_path / "bare.png", [[films[0]]], frames_per_cell=1))
    assert not (bare < 100).all(2).any()
    assert bare.shape == (52, 52, 3)


def test_a_sheet_shows_the_first_and_the_last_frame(tmp_path):
    film = np.stack([np.full((10, 10, 3), 10 * k, np.uint8) for k in range(16)])
    page = colours(contact_sheet(tmp_path / "sheet.png", [[film]], frames_per_cell=4))
    assert [int(page[10, 6 + 11 * k + 5, 0]) for k in range(4)] == [0, 50, 100, 150]


def test_labels_never_overlap_the_cells(tmp_path):
    word = "W" * 60
    path = contact_sheet(tmp_path / "s.png", [[flat((0, 0, 255), 1)] * 2] * 2, [word, word], [word, word])
    page = colours(path)
    blue = (page == (0, 0, 255)).all(2)
    assert blue.sum() == 4 * 1600  # none is painted over


def test_a_label_is_broken_after_its_hyphen(tmp_path):
    def page(label: str) -> np.ndarray:
        return colours(contact_sheet(tmp_path / "s.png", [[flat((0, 0, 255), 1)]], None, [label], scale=2))

    assert np.array_equal(page("sample-lightning"), page("sample- lightning"))
    assert not np.array_equal(page("sample-lightning"), page("sample lightning"))


def test_labels_must_be_as_many_as_the_cells(tmp_path):
    with pytest.raises(ValueError, match="1 row labels for 2 rows"):
        contact_sheet(tmp_path / "s.png", [[flat((0, 0, 9))]] * 2, ["one"])
    with pytest.raises(ValueError, match="no film"):
        compare_gif(tmp_path / "s.gif", [])
    with pytest.raises(UserError, match="cannot write"):
        contact_sheet("/proc/s.png", [[flat((0, 0, 9))]])


@pytest.mark.parametrize("suffix", [".gif", ".apng", ".mp4"])
def test_a_comparison_plays_and_short_films_hold_their_last_frame(tmp_path, suffix):
    long = np.concatenate([flat((200, 0, 0), 4), flat((0, 0, 200), 4)])
    short = flat((0, 200, 0), 2)
    path = compare_gif(
        tmp_path / f"c{suffix}", [[long, short]], ["prompt"], ["long", "short"], fps=8, scale=1.5
    )
    info = probe(path)
    assert info.seconds == pytest.approx(1.0, abs=0.01)
    clip = as_pixels(read_clip(path, 8, info.size, fps=8)).int()

    def area(k: int, colour: tuple[int, int, int]) -> int:
        return int(((clip[k] - torch.tensor(colour)).abs().amax(2) < 40).sum())

    for k, seen in ((0, (200, 0, 0)), (7, (0, 0, 200))):
        assert area(k, seen) == pytest.approx(3600, rel=0.06)
        assert area(k, (0, 200, 0)) == pytest.approx(3600, rel=0.06)
