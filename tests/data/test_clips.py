"""Reading clips: the right frames, whatever the codec, the clock, the container or the picture size."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from mcm.data.resize import fit
from mcm.data.video import UnreadableVideo, probe, read_clip

KINDS = [
    ("a.mp4", "libx264", "yuv420p"),
    ("a.avi", "mpeg4", "yuv420p"),
    ("a.webm", "libvpx-vp9", "yuv420p"),
    ("a.mkv", "ffv1", "yuv444p"),
    ("b.mkv", "libx264", "yuv420p"),
    ("a.mov", "mjpeg", "yuvj420p"),
    ("a.ts", "mpeg2video", "yuv420p"),
    ("b.ts", "libx264", "yuv420p"),
    ("a.mpg", "mpeg1video", "yuv420p"),
    ("a.flv", "flv1", "yuv420p"),
    ("a.wmv", "wmv2", "yuv420p"),
    ("a.3gp", "mpeg4", "yuv420p"),
    ("a.h264", "libx264", "yuv420p"),
    ("a.apng", "apng", "rgb24"),
]


@pytest.mark.parametrize(("name", "codec", "pixels"), KINDS)
def test_the_frames_read_are_the_frames_asked_for(tmp_path, make_film, frame_numbers, name, codec, pixels):
    options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {}
    path = make_film(tmp_path / name, codec, pixels=pixels, options=options)
    info = probe(path)
    assert info.fps == pytest.approx(30, rel=2e-3)
    assert info.size == (32, 64)
    assert probe(path, count=True).frames == 60
    assert probe(path, count=True).seconds == pytest.approx(2, abs=0.05)

    def read(frames, **how):
        return frame_numbers(read_clip(path, frames, (32, 64), **how))

    assert read(60) == list(range(60))
    assert read(5, stride=7) == [0, 7, 14, 21, 28]
    assert read(4, stride=3, start=40 / 30) == [40, 43, 46, 49]
    assert read(1, start=13 / 30 + 0.02) == [13]  # at or before, not the nearest
    assert read(3, fps=10, start=0.1) == [3, 6, 9]
    assert read(4, fps=60, start=1.0) == [30, 30, 31, 31]
    assert read(8, stride=4, at=1.0)[-1] >= 57
    middle = read(8, stride=4, at=0.5)[0]
    assert 13 <= middle <= 16


def test_a_gif_is_read_by_its_clock_of_hundredths(tmp_path, make_film, frame_numbers):
    path = make_film(tmp_path / "a.gif", "gif", fps=25, pixels="rgb8")
    assert frame_numbers(read_clip(path, 10, (32, 64), stride=6)) == list(range(0, 60, 6))
    assert probe(path).seconds == pytest.approx(2.4)


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(25, 2), Fraction(120)])
def test_odd_rates_keep_their_frames(tmp_path, make_film, frame_numbers, fps):
    for name in ("a.mp4", "a.mkv"):
        path = make_film(tmp_path / name, fps=fps)
        assert frame_numbers(read_clip(path, 12, (32, 64), stride=5)) == list(range(0, 60, 5))
        assert frame_numbers(read_clip(path, 2, (32, 64), stride=3, start=float(50 / fps))) == [50, 53]


def test_variable_frame_rate_follows_the_clock(tmp_path, make_film, frame_numbers):
    times = [0.1 * k for k in range(10)] + [1.0 + 0.5 * k for k in range(6)]  # 10 a second, then 2
    path = make_film(
        tmp_path / "a.mkv", "ffv1", 16, pixels="yuv444p", gop=1, times=times, tick=Fraction(1, 1000)
    )
    assert frame_numbers(read_clip(path, 8, (32, 64), fps=4)) == [0, 2, 5, 7, 10, 10, 11, 11]
    assert frame_numbers(read_clip(path, 3, (32, 64), fps=2, start=2.0)) == [12, 13, 14]


def test_a_film_whose_clock_does_not_start_at_zero(tmp_path, make_film, frame_numbers):
    times = [7.0 + k / 30 for k in range(60)]
    path = make_film(tmp_path / "a.mkv", "libx264", 60, times=times, tick=Fraction(1, 1000))
    assert frame_numbers(read_clip(path, 4, (32, 64), stride=10, start=10 / 30)) == [10, 20, 30, 40]


def test_a_title_that_is_not_utf8_does_no_harm(tmp_path, make_film, frame_numbers):
    path = make_film(tmp_path / "a.avi", "mpeg4")
    data = path.read_bytes()
    assert b"ISFT" in data  # the name of the program that wrote it: spoil that
    begin = data.index(b"ISFT") + 8
    path.write_bytes(data[:begin] + b"\xe4\xf6\xfc" + data[begin + 3 :])
    assert frame_numbers(read_clip(path, 3, (32, 64))) == [0, 1, 2]


@pytest.mark.parametrize("size", [(37, 51), (2, 3), (1, 1), (240, 16), (16, 500)])
def test_any_picture_size(tmp_path, make_film, size):
    path = make_film(tmp_path / "a.mkv", "ffv1", 4, size=size, pixels="yuv444p")
    clip = read_clip(path, 4, (24, 40))
    assert clip.shape == (3, 4, 24, 40)
    assert clip.dtype == torch.float32
    assert clip.min() >= -1
    assert clip.max() <= 1


def test_values_and_colours_come_through(tmp_path):
    colour = np.array([200, 30, 60], np.uint8)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "bgr0"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.tile(colour, (16, 24, 1)))))
        output.mux(stream.encode())
    clip = read_clip(path, 1, (8, 8))
    assert torch.allclose(clip[:, 0, 4, 4], torch.tensor(colour).float() / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(("turn", "corner"), [(90, 2), (180, 3), (270, 1), (0, 0)])
def test_the_rotation_a_phone_writes_is_applied(tmp_path, turn, corner):
    """A white upper left quarter, turned counter-clockwise by `turn`, as players show it (-90: clockwise)."""
    path = tmp_path / "a.mp4"
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :24] = 255
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.set_display_rotation(turn)
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        output.mux(stream.encode())
    size = (48, 32) if turn in (90, 270) else (32, 48)
    clip = read_clip(path, 1, size)[0, 0]
    h, w = size[0] // 4, size[1] // 4
    corners = [clip[h, w], clip[h, 3 * w], clip[3 * h, w], clip[3 * h, 3 * w]]
    assert int(torch.stack(corners).argmax()) == corner
    assert sum(bool(c > 0) for c in corners) == 1


def test_pixels_that_are_not_square_are_made_square(tmp_path, make_film):
    """64 x 32 stored pixels, twice as wide as high: shown at 4:1, so a 2:1 cut keeps the middle half."""
    path = make_film(tmp_path / "a.mkv", "ffv1", 1, pixels="yuv444p", aspect=Fraction(2, 1))
    plain = make_film(tmp_path / "b.mkv", "ffv1", 1, pixels="yuv444p")
    assert torch.allclose(
        read_clip(path, 1, (32, 64))[:, 0],
        torch.nn.functional.interpolate(
            read_clip(plain, 1, (32, 64))[:, :, :, 16:48].permute(1, 0, 2, 3),
            (32, 64),
            mode="bilinear",
            antialias=True,
        )[0],
        atol=1e-5,
    )


def test_fit_fills_cuts_and_does_not_stretch():
    ramp = torch.arange(90, dtype=torch.uint8)[None, :, None].expand(30, 90, 3)
    middle = (fit(ramp, (30, 30)) + 1) * 127.5
    assert torch.allclose(middle[0, 0], torch.arange(30, 60).float(), atol=1e-3)
    right = (fit(ramp, (30, 30), (0.0, 1.0)) + 1) * 127.5
    assert torch.allclose(right[0, 0], torch.arange(60, 90).float(), atol=1e-3)
    halved = (fit(ramp, (15, 15)) + 1) * 127.5  # antialiased: the mean stays, the step doubles
    assert float(halved.mean()) == pytest.approx(44.5, abs=0.1)
    assert float(halved[0, 0, 8] - halved[0, 0, 7]) == pytest.approx(2, abs=0.01)


def test_antialiasing_sees_what_lies_between_the_sampling_points():
    """Stripes, white where plain bilinear scaling would look, black elsewhere: a quarter of them is white."""
    column = torch.arange(64) % 8
    stripes = (((column == 3) | (column == 4)) * 255).to(torch.uint8)[None, :, None].expand(64, 64, 3)
    assert torch.allclose(fit(stripes, (8, 8))[:, :, 1:-1], torch.tensor(-0.5), atol=0.05)


def test_a_clock_that_jumps_back_does_not_mix_films(tmp_path, make_film, frame_numbers):
    """Two transport streams in one file, as recorders leave them: the second starts again at zero."""
    first = make_film(tmp_path / "a.ts", "mpeg2video", frames=60).read_bytes()
    second = make_film(tmp_path / "b.ts", "mpeg2video", frames=30).read_bytes()
    (tmp_path / "both.ts").write_bytes(first + second)
    clip = read_clip(tmp_path / "both.ts", 60, (32, 64), start=0.0)
    assert frame_numbers(clip) == list(range(60))


def test_random_crops_are_drawn_from_the_generator_alone(tmp_path, make_film):
    path = make_film(tmp_path / "a.mkv", "ffv1", 8, size=(16, 200), pixels="yuv444p")

    def read(seed):
        return read_clip(path, 8, (16, 16), crop="random", rng=torch.Generator().manual_seed(seed))

    assert torch.equal(read(1), read(1))
    assert len({float(read(seed).mean()) for seed in range(12)}) > 1
    assert torch.equal(read_clip(path, 8, (16, 16), crop="random"), read_clip(path, 8, (16, 16)))


def test_too_short_says_how_much_is_there_and_how_much_is_needed(tmp_path, make_film):
    path = make_film(tmp_path / "a.mp4", frames=27)
    with pytest.raises(UnreadableVideo) as caught:
        read_clip(path, 16, (32, 64), stride=4)
    assert caught.value.reason == "too short: 0.9 s, 2.0 s needed (16 frames, stride 4 at 30 fps)"
    assert probe(path).why_too_short(16, 4) == caught.value.reason
    assert probe(path).why_too_short(7, 4) is None
    with pytest.raises(UnreadableVideo, match=r"0\.4 s, 0\.5 s needed .*counted from 0\.5 s on"):
        read_clip(path, 16, (32, 64), start=0.5)
    assert math.isclose(probe(path).clip_seconds(27), 0.9)


def test_exactly_long_enough_is_long_enough(tmp_path, make_film, frame_numbers):
    for name in ("a.mp4", "a.mkv", "a.ts", "a.avi"):
        path = make_film(tmp_path / name, "mpeg4" if name != "a.mp4" else "libx264", frames=29)
        for at in (0.0, 0.5, 1.0):
            assert frame_numbers(read_clip(path, 8, (32, 64), stride=4, at=at)) == list(range(0, 29, 4))


def test_a_header_that_promises_too_much_is_corrected(tmp_path, make_film, frame_numbers):
    """An AVI cut off in the middle still claims more frames, as opencv's tree.avi does (444 for 68)."""
    whole = make_film(tmp_path / "a.avi", "mpeg4", frames=120).read_bytes()
    path = tmp_path / "cut.avi"
    begin = whole.index(b"movi")
    path.write_bytes(whole[: begin + (len(whole) - begin) // 3])
    real = probe(path, count=True).frames
    assert probe(path).frames > real + 10
    for at in (0.0, 0.3, 0.5, 1.0):
        found = frame_numbers(read_clip(path, 8, (32, 64), stride=2, at=at))
        assert found == list(range(found[0], found[0] + 16, 2))
        assert found[-1] < real
    with pytest.raises(UnreadableVideo, match="too short"):
        read_clip(path, 30, (32, 64), stride=4, at=0.5)


def test_wrong_arguments_are_errors_of_the_caller(tmp_path, make_film):
    path = make_film(tmp_path / "a.mp4", frames=10)
    for how in (
        {"stride": 2, "fps": 4.0},
        {"stride": 0},
        {"fps": 0.0},
        {"start": 0.1, "at": 0.1},
        {"start": -1.0},
        {"at": 1.5},
        {"crop": "left"},
    ):
        with pytest.raises(ValueError, match=r"stride|fps|start|crop"):
            read_clip(path, 2, (8, 8), **how)
    with pytest.raises(ValueError, match="positive"):
        read_clip(path, 0, (8, 8))
