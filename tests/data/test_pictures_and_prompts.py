"""Folders of pictures, and prompts."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mcm.data.open import open_prompts, open_videos
from mcm.data.pictures import UnreadablePicture, read_picture
from mcm.data.sources import Picture, PictureFolder, Prompts
from mcm.errors import UserError


def gradient(size: tuple[int, int] = (40, 60)) -> Image.Image:
    y, x = np.mgrid[: size[0], : size[1]]
    return Image.fromarray(np.stack([4 * y, 4 * x, 100 + 0 * x], 2).astype(np.uint8))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims width x height."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".JPEG"])
def test_pictures_of_every_kind(tmp_path, suffix):
    quality = {} if suffix in (".png", ".bmp") else {"quality": 95}
    gradient().save(tmp_path / f"a{suffix}", **quality)
    picture = PictureFolder(tmp_path, (40, 60))[0]
    assert isinstance(picture, Picture)
    assert (picture.name, picture.caption) == (f"a{suffix}", "")
    truth = torch.from_numpy(np.asarray(gradient()).copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert float((picture.image - truth).abs().mean()) < (1e-6 if not quality else 0.03)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "RGBA", "LA"])
def test_pictures_of_every_mode(tmp_path, mode):
    grey = gradient().convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = (grey if mode == "P" else grey.convert("RGB")).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    found = (read_picture(path, (40, 60)) + 1) * 127.5
    if mode != "1":
        assert float((found[0] - torch.from_numpy(np.asarray(grey).copy())).abs().mean()) < 3


def test_what_is_transparent_is_white(tmp_path):
    image = np.zeros((20, 20, 4), np.uint8)
    image[:, 10:] = (255, 0, 0, 255)
    Image.fromarray(image).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", (20, 20))
    assert torch.equal(found[:, 5, 5], torch.ones(3))
    assert torch.equal(found[:, 5, 15], torch.tensor([1.0, -1.0, -1.0]))


def test_the_camera_held_upright(tmp_path):
    """EXIF orientation 6: the camera was turned, the picture is to be turned clockwise by 90 degrees."""
    image = gradient((40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    found = read_picture(tmp_path / "a.png", (60, 40))
    truth = torch.from_numpy(np.rot90(np.asarray(image), -1).copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.allclose(found, truth, atol=1e-5)


def test_pictures_left_out_are_named(tmp_path):
    gradient().save(tmp_path / "good.png")
    (tmp_path / "good.json").write_text(json.dumps({"text": "a wall"}))
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "bomb.png").write_bytes(bomb(9000, 9000))
    (tmp_path / "megabomb.png").write_bytes(bomb(60000, 60000))
    (tmp_path / "latin.png").write_bytes((tmp_path / "good.png").read_bytes())
    (tmp_path / "latin.txt").write_bytes(b"\xe4")
    source = PictureFolder(tmp_path, (16, 16))
    assert [(p.name, p.caption) for p in source] == [("good.png", "a wall")]
    reasons = {name: reason.split(":")[0] for name, reason in source.report.dropped}
    assert reasons == {
        "text.png": "not a picture",
        "empty.jpg": "empty file",
        "bomb.png": "too large",
        "megabomb.png": "too large",
        "latin.png": "caption not UTF-8",
    }


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damaged_pictures_never_crash(tmp_path, kind):
    file = io.BytesIO()
    gradient((64, 64)).save(file, kind)
    whole = file.getvalue()
    luck = np.random.default_rng(0)
    reasons: list[str] = []
    for k in range(40):
        bad = bytearray(whole)
        for place in luck.integers(0, len(bad), 6):
            bad[place] ^= 1 << int(luck.integers(8))
        if k % 2:
            bad = bad[: int(luck.integers(len(bad)))]
        path = tmp_path / f"a.{kind.lower()}"
        path.write_bytes(bad)
        try:
            assert read_picture(path, (16, 16)).shape == (3, 16, 16)
        except UnreadablePicture as error:
            reasons.append(error.reason)
    assert reasons
    assert all(reasons)


def test_a_truncated_picture_is_found_when_it_is_read_or_by_decode(tmp_path):
    gradient().save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) * 3 // 4])
    source = PictureFolder(tmp_path, (16, 16))
    assert len(source) == 2
    assert source[1].name == "a.jpg"
    assert source.report.dropped[0][0] == "b.jpg"
    assert source.report.dropped[0][1].startswith("truncated or damaged: ")
    assert len(PictureFolder(tmp_path, (16, 16), check="decode")) == 1


def test_pictures_by_a_table_and_random_crops(tmp_path):
    gradient((20, 200)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,wide\n")
    source = PictureFolder(tmp_path, (20, 20), crop="random")
    assert source[0].caption == "wide"
    means = {float(source.read(0, torch.Generator().manual_seed(k)).image.mean()) for k in range(8)}
    assert len(means) > 3
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no pictures in it; expected a folder of pictures"):
        PictureFolder(tmp_path / "none", (8, 8))


def test_prompts_from_a_text_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa man  walks\r\n\r\n  ein Hund läuft\n".encode() + b"\xff\xfe bad\n" + b"last")
    prompts = Prompts(path)
    assert list(prompts) == ["a man walks", "ein Hund läuft", "last"]
    assert (len(prompts), prompts[1], prompts[-1]) == (3, "ein Hund läuft", "last")
    assert prompts.report.dropped == [("line 4", "prompt not UTF-8: save the file as UTF-8")]
    assert prompts.report.summary() == f"{path}: 4 prompts, 3 usable, 1 left out (1 prompt not UTF-8)"


def test_prompts_from_tables_and_lists(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"text": "two"}\n{"no": 1}\nnot json\n')
    prompts = Prompts(tmp_path / "p.jsonl")
    assert list(prompts) == ["one", "two"]
    assert [name for name, _ in prompts.report.dropped] == ["p.jsonl line 3", "p.jsonl line 4"]
    (tmp_path / "p.csv").write_text('id,Caption\n1,"one, two"\n2,\n')
    assert list(Prompts(tmp_path / "p.csv")) == ["one, two"]
    assert list(Prompts(["one", " ", "two"])) == ["one", "two"]
    assert Prompts(["one", " "]).report.dropped == [("prompt 2", "no prompt: it is empty")]


def test_no_prompts_is_one_clear_line(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.csv").write_text("id,file\n1,2\n")
    (tmp_path / "wide.txt").write_bytes("x".encode("utf-16"))
    for source, words in (
        (tmp_path / "missing.txt", "missing.txt does not exist: expected a text file with one prompt a line"),
        (tmp_path, "is a folder: expected a text file"),
        (tmp_path / "empty.txt", "no prompts in it; expected"),
        (tmp_path / "bad.csv", "no column with the captions: its heading is id, file"),
        (tmp_path / "wide.txt", "UTF-16"),
        ([], "prompts: no prompts in it"),
        ([" "], "prompt 1: no prompt: it is empty"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            Prompts(source)
        assert "\n" not in str(caught.value)


def test_the_laboratorys_captions_are_prompts_too(tmp_path) -> None:
    films = open_videos("pocket:broadcast", 2, (64, 64), 3)
    assert list(open_prompts("pocket:broadcast", 3)) == [clip.caption for clip in films]
    with pytest.raises(UserError, match="pocket:broadcast"):
        open_prompts("pocket:brodcast", 3)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert list(open_prompts(str(tmp_path / "prompts.txt"), 1)) == ["one", "two"]  # a file is read whole
