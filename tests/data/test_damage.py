"""Damaged films: every one is refused with a reason or read as clips of the right shape, and none crashes."""

from __future__ import annotations

import os
import random
import struct

import pytest
import torch
from PIL import Image

from mcm.data.video import UnreadableVideo, probe, read_clip

CODECS = {
    "a.mp4": ("libx264", "yuv420p"),
    "a.avi": ("mpeg4", "yuv420p"),
    "a.webm": ("libvpx-vp9", "yuv420p"),
    "a.mkv": ("ffv1", "yuv444p"),
    "a.gif": ("gif", "rgb8"),
    "a.ts": ("mpeg2video", "yuv420p"),
}


def damaged(data: bytes, seed: int) -> bytes:
    """Flipped bits, a cut, a hole of zeros, or two of these."""
    luck = random.Random(seed)
    bad = bytearray(data)
    if seed % 4 != 1:
        for _ in range(luck.choice([1, 10, 100])):
            bad[luck.randrange(len(bad))] ^= 1 << luck.randrange(8)
    if seed % 4 in (1, 2):
        bad = bad[: luck.randrange(1, len(bad))]
    if seed % 4 == 3:
        begin = luck.randrange(len(bad))
        end = min(len(bad), begin + luck.randrange(2000))
        bad[begin:end] = bytes(end - begin)
    return bytes(bad)


@pytest.mark.parametrize("name", CODECS)
def test_damage_never_crashes_and_always_has_a_reason(tmp_path, make_film, name):
    codec, pixels = CODECS[name]
    options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {}
    whole = make_film(tmp_path / name, codec, frames=40, fps=25, pixels=pixels, options=options).read_bytes()
    reasons: list[str] = []
    for seed in range(16):
        path = tmp_path / f"damaged{seed}{name[1:]}"
        path.write_bytes(damaged(whole, seed))
        for at in (0.0, 0.6):
            try:
                clip = read_clip(path, 4, (16, 32), stride=3, at=at)
                assert clip.shape == (3, 4, 16, 32)
                assert bool(clip.isfinite().all())
            except UnreadableVideo as error:
                reasons.append(error.reason)
    assert all(reason and "Errno" not in reason and "\n" not in reason for reason in reasons)
    assert reasons, "no damage was noticed at all: the test does not test"


def test_a_film_cut_off_is_read_up_to_the_cut(tmp_path, make_film, frame_numbers):
    whole = make_film(tmp_path / "a.mkv", "ffv1", frames=60, pixels="yuv444p", gop=1).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    for at in (0.0, 1.0):
        found = frame_numbers(read_clip(path, 8, (32, 64), stride=2, at=at))
        assert found == list(range(found[0], found[0] + 16, 2))
    with pytest.raises(UnreadableVideo, match=r"too short|damaged"):
        read_clip(path, 20, (32, 64), stride=3)


def test_what_is_not_a_film_is_named(tmp_path, make_film):
    film = make_film(tmp_path / "a.mp4", frames=4)
    cases = {"empty.mp4": b"", "text.mp4": b"just a text, renamed\n" * 40, "zeros.mp4": bytes(4000)}
    cases["noise.mp4"] = random.Random(0).randbytes(4000)
    cases["list.mp4"] = b"ffconcat version 1.0\nfile a.mp4\n"
    cases["playlist.mp4"] = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n"
    cases["head.mp4"] = film.read_bytes()[:100]
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableVideo):
            read_clip(tmp_path / name, 2, (8, 8))
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.mp4", "PNG")
    Image.new("RGB", (20, 20)).save(
        tmp_path / "moving.webp", save_all=True, append_images=[Image.new("RGB", (20, 20), "red")]
    )
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "broken.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    reasons = {
        "empty.mp4": "empty file",
        "text.mp4": "not a film",
        "list.mp4": "list",
        "picture.mp4": "single picture",
        "moving.webp": "WebP",
        "folder.mp4": "a folder",
        "broken.mp4": "no such file",
        "missing.mp4": "no such file",
        "pipe.mp4": "not a regular file",
    }
    for name, words in reasons.items():
        with pytest.raises(UnreadableVideo, match=words):
            probe(tmp_path / name)


def test_sound_without_pictures_is_named(tmp_path):
    samples = struct.pack("<800h", *range(800))
    header = (
        b"RIFF"
        + struct.pack("<I", 36 + len(samples))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    )
    (tmp_path / "sound.mp4").write_bytes(header + b"data" + struct.pack("<I", len(samples)) + samples)
    with pytest.raises(UnreadableVideo, match="no video stream"):
        probe(tmp_path / "sound.mp4")


def test_absurd_frames_are_refused_before_they_are_decoded(tmp_path, make_film):
    path = make_film(tmp_path / "a.mkv", "ffv1", 2, size=(16, 8200), pixels="yuv444p")
    with pytest.raises(UnreadableVideo, match=r"8200 x 16: at most 8192"):
        probe(path)


def test_a_corrupt_frame_is_not_shown_as_a_good_one(tmp_path, make_film):
    """The end of a frame lost in the middle of a chain of references: that stretch is left, or refused."""
    whole = bytearray(make_film(tmp_path / "a.avi", "mpeg4", frames=60, gop=60, size=(64, 128)).read_bytes())
    path = tmp_path / "bad.avi"
    clean = read_clip(tmp_path / "a.avi", 60, (64, 128))
    frame = [i for i in range(len(whole) - 4) if whole[i : i + 4] == b"00dc"][30]
    size = struct.unpack("<I", whole[frame + 4 : frame + 8])[0]
    whole[frame + 8 + size // 2 : frame + 8 + size] = b"\xff" * (size - size // 2)
    path.write_bytes(whole)
    with pytest.raises(UnreadableVideo, match="decoding stops"):
        read_clip(path, 60, (64, 128))
    assert torch.allclose(read_clip(path, 20, (64, 128)), clean[:, :20], atol=1e-6)
