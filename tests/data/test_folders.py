"""Folders and tables of films: captions of every kind, and a name and a reason for whatever is left out."""

from __future__ import annotations

import io
import json
import logging
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mcm.data.sources import Clip, VideoFolder
from mcm.data.tables import TABLES
from mcm.errors import UserError

SIZE = (32, 64)


@pytest.fixture
def films(tmp_path, make_film):
    """folder/a.mp4, b.mp4, sub/c.mp4, 20 frames each, without captions."""
    folder = tmp_path / "folder"
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        make_film(folder / name, frames=20)
    return folder


def captions(source: VideoFolder) -> dict[str, str]:
    return {clip.name: clip.caption for clip in source}


def test_sidecars_of_every_kind(films, make_film):
    (films / "a.txt").write_text("\ufeffa man\n  walks\n", encoding="utf-8")
    (films / "b.json").write_text(json.dumps({"Prompt": "ein Hund läuft", "other": 1}), encoding="utf-8")
    (films / "sub" / "c.mp4.txt").write_text("a cat")
    make_film(films / "d.e.mp4", frames=20)
    (films / "d.e.json").write_text(json.dumps({"text": ["first", "second"]}))
    source = VideoFolder(films, 8, SIZE)
    assert captions(source) == {
        "a.mp4": "a man walks",
        "b.mp4": "ein Hund läuft",
        "d.e.mp4": "first",
        "sub/c.mp4": "a cat",
    }
    assert (source.report.found, source.report.used, source.report.dropped) == (4, 4, [])
    assert source.report.summary() == f"{films}: 4 videos, 4 usable"
    clip = source[-1]
    assert isinstance(clip, Clip)
    assert clip.video.shape == (3, 8, 32, 64)
    assert len(source) == len(list(source)) == 4
    with pytest.raises(IndexError):
        source[4]


ROWS = [("a.mp4", "a man, walking"), ("sub/c.mp4", 'a "cat"'), ("./b.mp4", "Zwölf")]


def table(name: str, rows: list[tuple[str, str]], file: str, caption: str) -> bytes:
    if name.endswith(".parquet"):
        file_column, caption_column = zip(*rows, strict=True)
        made = io.BytesIO()
        pq.write_table(pa.table({caption.upper(): caption_column, "n": [1, 2, 3], file: file_column}), made)
        return made.getvalue()
    if name.endswith(".csv"):
        lines = [f" {file.upper()} ,n,{caption}"]
        lines += [",".join([f, "1", '"' + c.replace('"', '""') + '"']) for f, c in rows]
        return "\r\n".join(lines).encode("utf-8-sig")
    return "\n\n".join(json.dumps({caption: c, file: f}, ensure_ascii=False) for f, c in rows).encode()


@pytest.mark.parametrize("name", [*TABLES, "anything.csv", "anything.jsonl", "anything.parquet"])
@pytest.mark.parametrize(("file", "caption"), [("file", "caption"), ("path", "text"), ("video", "prompt")])
def test_tables_of_every_kind(films, name, file, caption):
    (films / name).write_bytes(table(name, ROWS, file, caption))
    source = VideoFolder(films / name if name.startswith("anything") else films, 8, SIZE)
    assert source.report.dropped == []
    assert sorted(captions(source).values()) == sorted(c for _, c in ROWS)
    assert len(source) == 3


def test_a_table_may_stand_elsewhere_and_name_a_film_twice(films, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(
        f"name,caption\nfolder/a.mp4,one\nfolder/a.mp4,two\n{films}/b.mp4,three\nnone.mp4,four\n,five\n"
    )
    source = VideoFolder(path, 8, SIZE)
    assert [clip.caption for clip in source] == ["one", "two", "three"]
    assert source.report.dropped == [
        ("none.mp4", "no such file"),
        ("list.csv line 6", "no file: list.csv line 6 names none"),
    ]
    assert source.report.found == 5


def test_a_sidecar_comes_before_the_table(films):
    (films / "captions.csv").write_bytes(table("captions.csv", ROWS, "file", "caption"))
    (films / "a.txt").write_text("from the sidecar")
    assert captions(VideoFolder(films, 8, SIZE))["a.mp4"] == "from the sidecar"


def test_everything_left_out_is_named_with_its_reason(films, tmp_path, make_film):
    for name in ("a", "b", "sub/c"):
        (films / f"{name}.txt").write_text("said")
    make_film(films / "short.mp4", frames=5)
    make_film(films / "mute.mp4", frames=20)
    make_film(films / "latin.mp4", frames=20)
    make_film(films / "blank.mp4", frames=20)
    make_film(films / "nojson.mp4", frames=20)
    make_film(films / "nokey.mp4", frames=20)
    (films / "latin.txt").write_bytes("Männer".encode("latin-1"))
    (films / "blank.txt").write_text(" \n")
    (films / "nojson.json").write_text("{")
    (films / "nokey.json").write_text('{"title": "x"}')
    for name in ("short", "empty", "text", "gone", "folder"):
        (films / f"{name}.txt").write_text("said")
    (films / "empty.mp4").touch()
    (films / "text.mp4").write_text("a text")
    (films / "gone.mp4").symlink_to("nowhere")
    (films / ".hidden.mp4").write_text("not looked at")
    (films / ".cache").mkdir()
    (films / ".cache" / "x.mp4").write_text("not looked at")
    (films / "folder.mp4").mkdir()
    make_film(films / "folder.mp4" / "d.MOV", frames=20)
    (films / "folder.mp4" / "d.txt").write_text("in a folder with the name of a film")
    (films / "notes.md").write_text("not a film")
    (films / "loop").symlink_to(films)
    (films / "sub" / "loop").symlink_to("..")
    seen = []
    source = VideoFolder(films, 8, SIZE, progress=lambda k, n: seen.append((k, n)))
    assert [clip.name for clip in source] == ["a.mp4", "b.mp4", "folder.mp4/d.MOV", "sub/c.mp4"]
    reasons = dict(source.report.dropped)
    assert reasons.pop("nojson.mp4").startswith("caption is not JSON: nojson.json: Expecting property name")
    assert reasons == {
        "short.mp4": "too short: 0.2 s, 0.3 s needed (8 frames, stride 1 at 30 fps)",
        "mute.mp4": "no caption: neither a .txt, a .json nor a table has one",
        "latin.mp4": "caption not UTF-8: latin.txt; save it as UTF-8",
        "blank.mp4": "no caption: there is none in blank.txt",
        "nokey.mp4": "no caption: there is none in nokey.json",
        "empty.mp4": "empty file",
        "text.mp4": "damaged or not a film: invalid data",
        "gone.mp4": "broken link: the file it points to is gone",
    }
    report = source.report
    assert report.found == report.used + len(report.dropped) == 13
    assert report.summary().startswith(f"{films}: 13 videos, 4 usable, 9 left out (3 no caption, ")
    assert "short.mp4: too short: 0.2 s, 0.3 s needed (8 frames, stride 1 at 30 fps)" in report.lines()
    assert json.loads(json.dumps(report.as_dict()))["used"] == 4
    assert seen[-1] == (13, 13)


def test_nothing_usable_is_one_clear_line(films, make_film):
    make_film(films / "short.mp4", frames=5)
    (films / "short.txt").write_text("said")
    with pytest.raises(UserError) as caught:
        VideoFolder(films, 8, SIZE)
    line = str(caught.value)
    assert line.startswith(
        f"{films}: 4 videos, 0 usable: 3 no caption, 1 too short. The first: a.mp4: no caption"
    )
    assert "captions.csv with the columns file,caption" in line
    assert "\n" not in line
    assert len(VideoFolder(films, 8, SIZE, need_captions=False)) == 3


def test_wrong_places_are_one_clear_line(tmp_path, make_film):
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").write_text("x")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "wide.csv").write_bytes("file,caption\n".encode("utf-16"))
    (tmp_path / "nothing.csv").write_text("")
    for name, words in {
        "missing": "no such folder: .*missing; expected a folder of videos",
        "empty": "no videos in it; expected a folder of videos",
        "film.mp4": "is a file: expected",
        "bad.csv": "no column with the captions: its heading is a, b; expected one of caption, text, prompt",
        "wide.csv": "UTF-16: save it as UTF-8",
        "nothing.csv": "its heading is empty",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            VideoFolder(tmp_path / name, 8, SIZE)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"unknown check 'decod'.*did you mean 'decode'"):
        VideoFolder(tmp_path, 8, SIZE, check="decod")
    with pytest.raises(UserError, match="unknown crop 'left'"):
        VideoFolder(tmp_path, 8, SIZE, crop="left")
    with pytest.raises(UserError, match="stride is 2 and fps is 8: give one"):
        VideoFolder(tmp_path, 8, SIZE, stride=2, fps=8)


def test_rows_that_cannot_be_used_are_named(films):
    lines = [b'{"file": "a.mp4", "caption": "good"}', b"{", b"[1]", b'{"file": "b.mp4"}']
    lines += [b'{"file": "sub/c.mp4", "caption": "M\xe4nner"}']
    (films / "captions.jsonl").write_bytes(b"\n".join(lines))
    source = VideoFolder(films, 8, SIZE)
    assert captions(source) == {"a.mp4": "good"}
    reasons = {name: reason.split(":")[0] for name, reason in source.report.dropped}
    assert reasons == {
        "captions.jsonl line 2": "not JSON",
        "captions.jsonl line 3": "not a JSON object",
        "b.mp4": "no caption",
        "sub/c.mp4": "caption not UTF-8",
    }


def spoil(path) -> None:
    """Keep the header of an MP4 and lose its pictures: a look at the header finds nothing wrong."""
    data = path.read_bytes()
    begin = data.index(b"mdat") + 8
    path.write_bytes(data[:begin] + bytes(len(data) - begin))


@pytest.fixture
def spoiled(tmp_path):
    from mcm.data.video import write_video

    for k, name in enumerate("abcd"):
        video = torch.full((8, 32, 64, 3), 40 * k + 40, dtype=torch.uint8)
        write_video(tmp_path / f"{name}.mp4", video, 8)
        (tmp_path / f"{name}.txt").write_text(name)
    spoil(tmp_path / "b.mp4")
    spoil(tmp_path / "c.mp4")
    return tmp_path


def test_a_failure_while_reading_is_counted_and_replaced_the_same_way_every_time(spoiled, caplog):
    source = VideoFolder(spoiled, 4, SIZE)
    assert len(source) == source.report.used == 4
    with caplog.at_level(logging.WARNING, "mcm"):
        drawn = torch.Generator().manual_seed(3)
        first = source.read(1, drawn)
        assert first.caption == "d"
        assert source.report.used == 2
        assert [name for name, _ in source.report.dropped] == ["b.mp4", "c.mp4"]
        again = source.read(1, torch.Generator().manual_seed(3))
        assert torch.equal(first.video, again.video)
        after = torch.rand(1, generator=drawn)
        fresh = torch.Generator().manual_seed(3)
        source.read(1, fresh)
        assert torch.equal(after, torch.rand(1, generator=fresh)), "what is drawn depends on an old failure"
        assert source[2].caption == "d"
    assert len(caplog.records) == 2  # once for each file
    assert "left out b.mp4: damaged" in caplog.text
    assert len(source) == 4  # the order of a stream stays what it was
    assert [clip.caption for clip in source] == ["a", "d"]


def test_check_decode_finds_it_before(spoiled):
    source = VideoFolder(spoiled, 4, SIZE, check="decode")
    assert [clip.caption for clip in source] == ["a", "d"]
    assert source.report.found == 4
    assert source.report.used == 2


def test_when_all_is_broken_after_all(spoiled):
    source = VideoFolder(spoiled, 4, SIZE)
    spoil(spoiled / "a.mp4")
    (spoiled / "d.mp4").unlink()
    with pytest.raises(UserError, match=r"4 videos, 0 usable: 3 damaged.*1 no such file"):
        source[0]


def test_the_start_is_the_middle_or_drawn(tmp_path, make_film, frame_numbers):
    make_film(tmp_path / "a.mp4", frames=100)
    (tmp_path / "a.txt").write_text("said")
    source = VideoFolder(tmp_path, 4, SIZE, stride=2)
    assert frame_numbers(source[0].video)[0] in (46, 47)
    assert torch.equal(source[0].video, source[0].video)
    drawn = torch.Generator().manual_seed(0)
    starts = [frame_numbers(source.read(0, drawn).video)[0] for _ in range(24)]
    assert min(starts) < 25
    assert max(starts) > 70
    assert len(set(starts)) > 12


def test_names_that_are_not_text(tmp_path, make_film):
    film = make_film(tmp_path / "a.mp4", frames=20).read_bytes()
    name = os.fsencode(tmp_path) + b"/\xff.mp4"
    with open(name, "wb") as file:
        file.write(film)
    source = VideoFolder(tmp_path, 8, SIZE, need_captions=False)
    assert len(source) == 2
    assert [clip.name.encode() for clip in source]  # may be printed, whatever it is
