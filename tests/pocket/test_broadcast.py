"""What broadcasting does to a clean film: duller, softer, marked, and passed through real codecs."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.frame import PictureType
from torch import Tensor
from torch.nn import functional as F

from mcm.pocket import world
from mcm.pocket.broadcast import broadcast, through_h264, through_jpeg, watermark
from mcm.pocket.render import render

COUNT, FRAMES, SIZE = 12, 4, 64


@pytest.fixture(scope="module")
def clean() -> Tensor:
    """Clean renderings (B, T, H, W, 3) in [0, 1]."""
    specs = [world.spec("train", i) for i in range(COUNT)]
    return render(specs, world.stage(specs, FRAMES), "plain", SIZE)


@pytest.fixture(scope="module")
def aired(clean: Tensor) -> Tensor:
    return broadcast(clean, list(range(COUNT)))


def away_from_the_mark() -> Tensor:
    """Pixels (H, W) more than three from any of the watermark's."""
    return F.max_pool2d(watermark(SIZE)[None], 7, stride=1, padding=3)[0] == 0


def test_every_clip_loses_contrast(clean: Tensor, aired: Tensor) -> None:
    assert aired.shape == clean.shape
    assert float(aired.min()) >= 0
    assert float(aired.max()) <= 1
    away = away_from_the_mark()
    spread = [v[:, :, away].flatten(1).std(dim=1) for v in (clean, aired)]
    assert bool((spread[1] < 0.75 * spread[0]).all()), spread


def test_edges_become_soft() -> None:
    """An edge of one pixel is spread over several, whatever the contrast."""
    edge = torch.full((COUNT, 2, SIZE, SIZE, 3), 0.2)
    edge[..., SIZE // 2 :, :] = 0.8
    aired = broadcast(edge, list(range(COUNT)))
    rows = slice(40, SIZE)  # below the mark
    profile = aired[:, :, rows].mean(dim=(1, 2, 4))
    height = profile[:, -8:].mean(dim=1) - profile[:, :8].mean(dim=1)
    steepest = (profile[:, 1:] - profile[:, :-1]).amax(dim=1)
    assert bool((height < 0.75 * 0.6).all())
    assert bool((steepest < 0.7 * height).all()), steepest / height


def test_every_clip_carries_the_mark(clean: Tensor, aired: Tensor) -> None:
    """Brighter where the letters are than in the rest of their own rows, by more than the film itself is."""
    mark = watermark(SIZE).bool()
    rows = mark.any(dim=1)
    letters, between = mark & rows[:, None], ~mark & rows[:, None]
    # the mark's own columns alone: the same piece of the picture, with and without letters
    columns = mark.any(dim=0)
    between = between & columns[None]
    risen = aired - clean
    assert bool((risen[:, :, letters].mean(dim=(1, 2, 3)) > risen[:, :, between].mean(dim=(1, 2, 3)) + 0.03).all())
    flat = broadcast(torch.full((1, 2, SIZE, SIZE, 3), 0.4), [1])[0]
    assert float(flat[:, letters].mean() - flat[:, between].mean()) > 0.07


def test_a_frame_too_small_for_the_mark_shows_its_middle() -> None:
    assert watermark(16).shape == (16, 16)
    assert 0 < float(watermark(16).mean()) < 0.3
    assert broadcast(torch.full((1, 2, 16, 16, 3), 0.5), [0]).shape == (1, 2, 16, 16, 3)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_mark_is_five_letters_that_fit(size: int) -> None:
    mark = watermark(size)
    assert mark.shape == (size, size)
    assert set(mark.unique().tolist()) == {0.0, 1.0}
    seen = mark.any(dim=0).nonzero()
    assert 0 < int(seen[0]) <= int(seen[-1]) < size - 1
    gaps = (~mark[:, int(seen[0]) : int(seen[-1]) + 1].bool().any(dim=0)).sum()
    assert int(gaps) == 4 * max(1, round(size / 32))  # a gap between each two letters


def test_it_is_a_function_of_the_seed_alone(clean: Tensor, aired: Tensor) -> None:
    assert torch.equal(broadcast(clean[3:5], [3, 4]), aired[3:5])
    assert not torch.equal(broadcast(clean[3:4], [40])[0], aired[3])


def test_both_codecs_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, int]] = []
    for name in ("through_h264", "through_jpeg"):

        def through(pixels: np.ndarray, quality: int, name: str = name) -> np.ndarray:
            used.append((name, quality))
            return pixels

        monkeypatch.setattr(f"mcm.pocket.broadcast.{name}", through)
    broadcast(torch.full((60, 1, 16, 16, 3), 0.5), list(range(60)))
    film = [quality for name, quality in used if name == "through_h264"]
    jpeg = [quality for name, quality in used if name == "through_jpeg"]
    assert len(film) + len(jpeg) == 60
    assert 15 < len(film) < 45
    assert 26 <= min(film) <= max(film) < 31
    assert 45 <= min(jpeg) <= max(jpeg) < 65


# Codecs --------------------------------------------------------------------------------------------------------------


def moving(frames: int = 6, size: int = 64) -> np.ndarray:
    """A grey wave that moves, uint8 (T, H, W, 3): no colour, which 4:2:0 would lose."""
    x = np.arange(size)[None, None, :] - 3 * np.arange(frames)[:, None, None]
    wave = 128 + 90 * np.sin(x * 2 * np.pi / 32) * np.cos(np.arange(size) * 2 * np.pi / 40)[None, :, None]
    return np.repeat(wave.round().astype(np.uint8)[..., None], 3, axis=3)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("codec", [through_h264, through_jpeg])
@pytest.mark.parametrize("shape", [(1, 64, 64), (7, 32, 48)])
def test_a_codec_gives_back_as_many_frames_of_the_same_size(codec, shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = pixels.copy()
    out = codec(pixels, 30)
    assert out.shape == pixels.shape
    assert out.dtype == np.uint8
    assert np.array_equal(pixels, before)
    assert not np.array_equal(out, pixels)


@pytest.mark.parametrize(("codec", "best", "middle", "worst"), [(through_h264, 1, 28, 45), (through_jpeg, 95, 50, 5)])
def test_quality_decides_what_is_lost(codec, best: int, middle: int, worst: int) -> None:
    pixels = moving()
    losses = [error(codec(pixels, quality), pixels) for quality in (best, middle, worst)]
    assert losses == sorted(losses)
    assert losses[0] < 1.5 < losses[2]
    # frames come back in their order: each is nearest to its own
    out = codec(pixels, best)
    assert [min(range(6), key=lambda k: error(out[t], pixels[k])) for t in range(6)] == list(range(6))


def test_h264_is_the_decoded_bitstream_of_a_real_file() -> None:
    """Encoded a second time, here into a file in memory, and decoded by opening that file: the same pictures."""
    pixels = (render(*_scene(), "plain", SIZE)[0] * 255).round().byte().numpy()
    file = io.BytesIO()
    with av.open(file, "w", format="h264") as container:
        options = {"crf": "28", "preset": "veryfast", "tune": "zerolatency", "threads": "1"}
        stream = container.add_stream("libx264", rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 8)
        for number, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, format="h264") as container:
        kinds, shown = [], []
        for frame in container.decode(video=0):
            kinds.append(frame.pict_type)
            shown.append(frame.to_ndarray(format="rgb24"))
    assert kinds[0] == PictureType.I
    assert PictureType.P in kinds[1:]  # it predicts from frame to frame, as no picture codec does
    assert len(file.getvalue()) < pixels.nbytes / 8
    assert np.array_equal(np.stack(shown), through_h264(pixels, 28))


def _scene() -> tuple[list[world.Spec], Tensor]:
    specs = [world.spec("student", 3)]
    return specs, world.stage(specs, 8)


def test_jpeg_treats_every_frame_by_itself() -> None:
    pixels = moving()
    assert np.array_equal(through_jpeg(pixels, 50)[2:3], through_jpeg(pixels[2:3], 50))
