"""WebDataset tars: every sample of the usual layouts is read where it lies, and whatever cannot be used is named."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import ADAPTER, CAPTIONS, make_material, recipe

from mcm.data.files import part
from mcm.data.sources import PictureFolder, VideoFolder
from mcm.data.tars import braces
from mcm.distill import distill
from mcm.errors import UserError

SIZE = (32, 64)
Members = list[tuple[str, bytes]]


def put(path: Path, members: Members, **how: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as tar:
        for name, data in members:
            head = tarfile.TarInfo(name)
            head.size = len(data)
            tar.addfile(head, io.BytesIO(data))
    return path


@pytest.fixture
def film(tmp_path, make_film) -> bytes:
    return make_film(tmp_path / "made.mp4", frames=20).read_bytes()


def picture(shade: int, kind: str = "JPEG") -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), shade, np.uint8)).save(made, kind)
    return made.getvalue()


def said(source) -> dict[str, str]:
    return {item.name: item.caption for item in source}


def test_films_of_the_official_layout_are_read_where_they_lie(tmp_path, make_film, frame_numbers):
    """A key with .mp4 and .json ("caption" in it), or .txt, in several shards; the bytes decode as the file itself."""
    for shard in range(2):
        members: Members = []
        for k in range(3):
            made = make_film(tmp_path / f"{shard}{k}.mp4", frames=20 + 10 * k + shard).read_bytes()
            caption = json.dumps({"caption": f" film {shard}\n{k}", "videoid": k}).encode()
            members += [(f"{k:06d}.mp4", made), (f"{k:06d}.json", caption)]
        put(tmp_path / "shards" / f"{shard:04d}.tar", members)
    source = VideoFolder(tmp_path / "shards", 8, SIZE, stride=2)
    assert said(source) == {f"{s:04d}.tar/{k:06d}.mp4": f"film {s} {k}" for s in range(2) for k in range(3)}
    assert source.report.summary() == f"{tmp_path / 'shards'}: 6 videos, 6 usable"
    for index in (5, 0, 3):
        shard, k = divmod(index, 3)
        (tmp_path / "alone").mkdir(exist_ok=True)
        (tmp_path / "alone" / "a.mp4").write_bytes((tmp_path / f"{shard}{k}.mp4").read_bytes())
        alone = VideoFolder(tmp_path / "alone", 8, SIZE, stride=2, need_captions=False)
        assert torch.equal(source[index].video, alone[0].video)
        assert len(set(frame_numbers(source[index].video))) == 8
    drawn = torch.Generator().manual_seed(0)
    assert len({frame_numbers(source.read(5, drawn).video)[0] for _ in range(8)}) > 3
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == ["0000.tar", "0001.tar"]  # nothing extracted


def test_pictures_of_the_laion_layout(tmp_path):
    """What img2dataset writes: key.jpg, key.txt and key.json of all that is known, in 00000.tar beside a table."""
    known = json.dumps({"caption": "from the json", "url": "https://no.where/a.jpg", "status": "success"}).encode()
    members: Members = []
    for k in range(3):
        members += [(f"00000000{k}.jpg", picture(60 * k)), (f"00000000{k}.txt", b"red"), (f"00000000{k}.json", known)]
    members += [("000000003.webp", picture(9, "WEBP")), ("000000003.json", known)]
    members += [("000000004.PNG", picture(200, "PNG"))]
    put(tmp_path / "00000.tar", members)
    source = PictureFolder(tmp_path / "00000.tar", (20, 30))
    names = [f"00000.tar/00000000{k}.{kind}" for k, kind in enumerate(("jpg", "jpg", "jpg", "webp", "png"))]
    assert said(source) == dict(zip(names, ["red", "red", "red", "from the json", ""], strict=True))
    assert source.report.dropped == []
    assert [round(float(source[k].image.mean() + 1) * 127.5 / 10) for k in (4, 1)] == [20, 6]
    with pytest.raises(UserError, match=r"00000\.tar: no videos in it"):
        VideoFolder(tmp_path / "00000.tar", 8, SIZE)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{0008..0011}.tar", ["s-0008.tar", "s-0009.tar", "s-0010.tar", "s-0011.tar"]),
        ("{b,a}/{2..0}.tar", ["b/2.tar", "b/1.tar", "b/0.tar", "a/2.tar", "a/1.tar", "a/0.tar"]),
        ("{a,a}.tar", ["a.tar"]),
        ("{x}.tar", ["{x}.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(pattern, names):
    assert braces(pattern) == names


def test_shards_by_braces(tmp_path, film):
    for k in (0, 1, 3):
        put(tmp_path / f"s-000{k}.tar", [("a.mp4", film), ("a.txt", f"of {k}".encode())])
    source = VideoFolder(f"{tmp_path}/s-{{0000..0003}}.tar", 8, SIZE)
    assert said(source) == {f"s-000{k}.tar/a.mp4": f"of {k}" for k in (0, 1, 3)}
    assert source.report.dropped == [("s-0002.tar", "no such file")]
    for wrong, words in {
        f"{tmp_path}/t-{{0..2}}.tar": "3 videos, 0 usable: 3 no such file",
        f"{tmp_path}/s-{{0..9999999999}}.tar": "more than 100000 names",
        f"{tmp_path}/{{a,b}}.mp4": r"no such folder: .*tars as in shards-\{0000..0009\}.tar",
    }.items():
        with pytest.raises(UserError, match=words):
            VideoFolder(wrong, 8, SIZE)


def test_a_key_ends_at_the_first_dot_and_folders_belong_to_it(tmp_path, film):
    members = [
        ("a/1.txt", b"of a"), ("b/1.mp4", film), ("a/1.MP4", film), ("b/1.caption", b"of b"),
        ("./c.low.mp4", film), ("./c.txt", b"of c"), (".hidden.mp4", b"x"), ("._c.mp4", b"x"), ("__meta__.json", b"{}"),
    ]  # fmt: skip
    source = VideoFolder(put(tmp_path / "s.tar", members), 8, SIZE)
    assert said(source) == {"s.tar/b/1.mp4": "of b", "s.tar/a/1.mp4": "of a", "s.tar/c.low.mp4": "of c"}
    assert source.report.dropped == []


def test_loose_films_and_tars_of_one_folder(tmp_path, film):
    put(tmp_path / "f" / "deep" / "s.tar", [("a.mp4", film), ("a.txt", b"in the tar")])
    (tmp_path / "f" / "a.mp4").write_bytes(film)
    (tmp_path / "f" / "a.txt").write_text("loose")
    assert said(VideoFolder(tmp_path / "f", 8, SIZE)) == {"a.mp4": "loose", "deep/s.tar/a.mp4": "in the tar"}


def test_what_must_not_be_followed_is_named(tmp_path, film):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(film)
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("good.mp4", "../out.mp4", "/etc/abs.mp4", "C:\\abs.mp4", "in/../../out2.mp4"):
            head = tarfile.TarInfo(name)
            head.size = len(film)
            tar.addfile(head, io.BytesIO(film))
        for name, kind, target in [
            ("soft.mp4", tarfile.SYMTYPE, str(secret)),
            ("hard.mp4", tarfile.LNKTYPE, "good.mp4"),
            ("pipe.mp4", tarfile.FIFOTYPE, ""),
            ("disk.mp4", tarfile.BLKTYPE, ""),
            ("folder.mp4", tarfile.DIRTYPE, ""),
        ]:
            head = tarfile.TarInfo(name)
            head.type, head.linkname = kind, target
            tar.addfile(head)
        for name in ("good.txt", "soft.txt", "hard.txt"):
            head = tarfile.TarInfo(name)
            head.size = 4
            tar.addfile(head, io.BytesIO(b"said"))
    source = VideoFolder(path, 8, SIZE)
    assert said(source) == {"s.tar/good.mp4": "said"}
    assert dict(source.report.dropped) == {
        "s.tar/../out.mp4": "unsafe member: its path climbs out of the tar",
        "s.tar/in/../../out2.mp4": "unsafe member: its path climbs out of the tar",
        "s.tar//etc/abs.mp4": "unsafe member: its path is absolute",
        "s.tar/C:\\abs.mp4": "unsafe member: its path is absolute",
        "s.tar/soft.mp4": f"unsafe member: a link to {secret}; links are not followed",
        "s.tar/hard.mp4": "unsafe member: a link to good.mp4; links are not followed",
        "s.tar/pipe.mp4": "unsafe member: a device or pipe",
        "s.tar/disk.mp4": "unsafe member: a device or pipe",
    }
    assert source.report.found == 9
    assert source.report.kinds() == "8 unsafe member"


def test_pickles_are_never_opened(tmp_path, film, monkeypatch):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    bomb = pickle.dumps(Bomb())
    members = [("1.mp4", film), ("1.txt", b"said"), ("1.pyd", bomb), ("2.pt", bomb), ("2.txt", b"two"), ("3.npy", bomb)]
    source = VideoFolder(put(tmp_path / "s.tar", members), 8, SIZE, check="decode")
    assert said(source) == {"s.tar/1.mp4": "said"}
    assert source.report.dropped == [
        ("s.tar/2", "only .pt, .txt: pickles are never opened"),
        ("s.tar/3", "only .npy: pickles are never opened"),
    ]
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # the bomb is a real one
    assert (tmp_path / "exploded").exists()


def test_samples_that_cannot_be_used_are_named(tmp_path, film):
    members = [
        ("ok.mp4", film), ("ok.txt", b"\xef\xbb\xbfsaid"), ("latin.mp4", film), ("latin.txt", b"M\xe4nner"),
        ("mute.mp4", film), ("nojson.mp4", film), ("nojson.json", b"{"), ("nokey.mp4", film), ("nokey.json", b"{}"),
        ("twice.mp4", film), ("twice.txt", b"first"), ("twice.mp4", film), ("twice.txt", b"second"),
        ("two.mp4", film), ("two.webm", film), ("two.txt", b"said"), ("lone.txt", b"x"), ("empty.mp4", b""),
        ("empty.txt", b"x"), ("bad.mp4", b"not a film"), ("bad.txt", b"x"), ("long.mp4", film),
        ("long.txt", b"x" * ((1 << 20) + 1)), ("other.jpg", b"x"), ("other.txt", b"about a picture"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile://" + str(tmp_path / "made.mp4").encode() + b"\n#EXT-X-ENDLIST\n"),
        ("list.txt", b"a playlist that names a film of the disk"),
    ]  # fmt: skip
    source = VideoFolder(put(tmp_path / "s.tar", members), 8, SIZE)
    assert said(source) == {"s.tar/ok.mp4": "said", "s.tar/twice.mp4": "first", "s.tar/two.mp4": "said"}
    reasons = {name.removeprefix("s.tar/"): reason for name, reason in source.report.dropped}
    assert reasons.pop("nojson.mp4").startswith("caption is not JSON: nojson.json: ")
    assert reasons.pop("list.mp4").startswith(("damaged or not a film", "not a film but a list"))
    again = "duplicate: a member of this name stands before it, which is used"
    assert reasons == {
        "latin.mp4": "caption not UTF-8: latin.txt; save it as UTF-8",
        "mute.mp4": "no caption: neither a .txt, a .json nor a table has one",
        "nokey.mp4": "no caption: there is none in nokey.json",
        "twice.mp4": again,
        "twice.txt": again,
        "two.webm": "duplicate key: two.mp4 has it too, which is used",
        "lone": "only .txt: no film or picture of its key",
        "empty.mp4": "empty file",
        "bad.mp4": "damaged or not a film: invalid data",
        "long.mp4": "caption too long: long.txt has more than 1 MiB",
    }
    assert source.report.found == source.report.used + len(source.report.dropped) == 15


def test_a_truncated_tar_gives_its_good_members_and_names_the_break(tmp_path, film):
    """Cut at every kind of place: in a film, in padding, in a header, before the end mark."""
    members = [(f"{k}.{kind}", data) for k in range(3) for kind, data in (("txt", b"said"), ("mp4", film))]
    whole = put(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        heads = {member.name: member for member in tar}
    third, second = heads["2.mp4"], heads["1.mp4"]
    marks = third.offset_data + -(-third.size // 512) * 512
    cuts = {
        third.offset_data + 1000: (2, "s.tar/2.mp4", "truncated: the tar ends inside it"),
        third.offset + 100: (2, "s.tar", "truncated: the tar breaks off after 2.txt"),
        heads["2.txt"].offset: (2, "s.tar", "truncated: the tar breaks off after 1.mp4, without its end mark"),
        second.offset_data + second.size + 1: (2, "s.tar", "damaged tar: unexpected end of data; the members before"),
        marks: (3, "s.tar", "truncated: the tar breaks off after 2.mp4, without its end mark"),
    }
    for cut, (usable, name, words) in cuts.items():
        (tmp_path / "s.tar").write_bytes(whole[:cut])
        source = VideoFolder(tmp_path / "s.tar", 8, SIZE)
        assert len(said(source)) == usable, cut
        assert any(n == name and reason.startswith(words) for n, reason in source.report.dropped), source.report.lines()
    spoiled = bytearray(whole)
    spoiled[second.offset : second.offset + 100] = b"\xff" * 100
    (tmp_path / "s.tar").write_bytes(spoiled)
    source = VideoFolder(tmp_path / "s.tar", 8, SIZE)
    assert len(source) == 1
    assert "s.tar: damaged tar: no header after 1.txt; the members before that are used" in source.report.lines()
    (tmp_path / "s.tar").write_bytes(whole + whole)
    assert VideoFolder(tmp_path / "s.tar", 8, SIZE).report.kinds() == "1 more after its end mark"


def test_damage_anywhere_is_a_reason_never_a_crash(tmp_path, film):
    members = [(f"{'long/' * 30}{k}.{kind}", data) for k in range(2) for kind, data in (("mp4", film), ("txt", b"x"))]
    whole = put(tmp_path / "whole.tar", members, format=tarfile.PAX_FORMAT).read_bytes()
    luck = np.random.default_rng(0)
    with tarfile.open(tmp_path / "whole.tar") as tar:
        heads = [member.offset for member in tar]
    for _ in range(60):
        bad = bytearray(whole)
        start = int(luck.choice(heads))
        for at in luck.integers(start, start + 1536, 6):
            bad[at] = luck.integers(256)
        (tmp_path / "s.tar").write_bytes(bad)
        try:
            lines = VideoFolder(tmp_path / "s.tar", 8, SIZE).report.lines()
        except UserError as error:
            lines = [str(error)]
        assert not any("\n" in line for line in lines)


def test_a_header_that_claims_to_be_long_is_not_read(tmp_path, film):
    head = tarfile.TarInfo("././@PaxHeader")
    head.type, head.size = tarfile.XHDTYPE, 64 << 20
    good = put(tmp_path / "good.tar", [("1.mp4", film), ("1.txt", b"said")]).read_bytes()
    good = good[: len(film) // 512 * 512 + 4 * 512]  # without the end marks
    with open(tmp_path / "s.tar", "wb") as file:
        file.write(good + head.tobuf())
        file.truncate(80 << 20)  # sparse: it costs no disk
    source = VideoFolder(tmp_path / "s.tar", 8, SIZE)
    assert said(source) == {"s.tar/1.mp4": "said"}
    assert source.report.dropped[-1][1].startswith("damaged tar: a header claims 67108864 bytes")


def test_files_that_are_no_tar(tmp_path, film):
    put(tmp_path / "plain.tar", [("1.mp4", film), ("1.txt", b"said")])
    with tarfile.open(tmp_path / "z.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "plain.tar", "x.mp4")
    (tmp_path / "z.tar").write_bytes((tmp_path / "z.tar.gz").read_bytes())
    (tmp_path / "text.tar").write_bytes(b"hello" * 500)
    (tmp_path / "empty.tar").touch()
    source = VideoFolder(tmp_path, 8, SIZE, need_captions=False)
    packed = "compressed tar: its members cannot be reached one by one; unpack it to a plain .tar"
    reasons = dict(source.report.dropped)
    assert reasons.pop("text.tar").startswith("not a tar, or damaged at its start: ")
    assert reasons == {"z.tar": packed, "z.tar.gz": packed, "empty.tar": "empty file"}
    put(tmp_path / "none.tar", [])
    with pytest.raises(UserError, match=r"no videos in it; expected .* or WebDataset tars"):
        VideoFolder(tmp_path / "none.tar", 8, SIZE)


def test_a_tar_that_goes_away_is_named_when_it_is_read(tmp_path, film, caplog):
    put(tmp_path / "s" / "0.tar", [("1.mp4", film), ("1.txt", b"one")])
    put(tmp_path / "s" / "1.tar", [("1.mp4", film), ("1.txt", b"two")])
    source = VideoFolder(tmp_path / "s", 8, SIZE)
    (tmp_path / "s" / "0.tar").unlink()
    with caplog.at_level(logging.WARNING, "mcm"):
        assert source[0].caption == "two"
    assert source.report.dropped == [("0.tar/1.mp4", "no such file")]


def test_a_part_is_a_file_of_its_own():
    stream = part(io.BytesIO(b"0123456789"), "a.mp4", 2, 5)
    assert (stream.read(), stream.read(1), stream.name) == (b"23456", b"", "a.mp4")
    assert (stream.seek(-2, io.SEEK_END), stream.read(9)) == (3, b"56")
    assert (stream.seek(1), stream.seek(1, io.SEEK_CUR), stream.read(1)) == (1, 2, b"4")
    assert (stream.seek(99), stream.read(1)) == (99, b"")
    with pytest.raises(ValueError, match="before the first byte"):
        stream.seek(-9, io.SEEK_END)


def test_a_student_learns_from_tars_what_it_learns_from_folders(tmp_path):
    """One update of the paper's method, films and pictures from tars: the same weights as from the loose files."""
    place = make_material(tmp_path / "place")
    (place / "pictures" / "picture0.txt").write_text("a picture")
    for kind in ("clips", "pictures"):
        files = sorted((place / kind).iterdir())
        put(place / f"{kind}-tars" / "00000.tar", [(f"{kind}/{path.name}", path.read_bytes()) for path in files])
    runs = {}
    for kind in ("", "-tars"):
        chosen = recipe(
            place, method={"name": "mcm", "adversary": "pictures"}, training__updates=1,
            data={"videos": f"{place}/clips{kind}", "images": f"{place}/pictures{kind}", "frames": 4},
        )  # fmt: skip
        distill(chosen, tmp_path / f"run{kind}")
        runs[kind] = load_file(tmp_path / f"run{kind}" / ADAPTER)
    assert runs[""].keys() == runs["-tars"].keys()
    assert all(torch.equal(runs[""][name], runs["-tars"][name]) for name in runs[""])
    films, pictures = sorted(
        json.loads((tmp_path / "run-tars" / "sources.json").read_text()), key=lambda report: report["where"]
    )
    assert (films["used"], pictures["used"]) == (len(CAPTIONS), 3)
    assert [left["name"] for left in films["dropped"]] == ["00000.tar/clips/broken.mp4"]


def test_a_list_in_a_tar_opens_no_file_of_the_disk(tmp_path, film, monkeypatch):
    """FFmpeg's lists name other files: the reason must be that they were refused, not that they were looked into."""
    monkeypatch.chdir(tmp_path)  # where made.mp4 lies, a name that FFmpeg holds for safe
    members = [("1.mp4", b"ffconcat version 1.0\nfile made.mp4\n"), ("2.mp4", film)]
    source = VideoFolder(put(tmp_path / "s.tar", members), 8, SIZE, need_captions=False)
    assert source.report.dropped == [("s.tar/1.mp4", "damaged or not a film: invalid argument")]
