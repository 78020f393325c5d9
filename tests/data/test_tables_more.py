"""Tables in Parquet, and with the columns of WebVid."""

from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mcm.data.files import Missing
from mcm.data.sources import PictureFolder, Prompts, VideoFolder
from mcm.data.tables import Row, read_table
from mcm.errors import UserError

SIZE = (32, 64)
WEBVID = "videoid,contentUrl,duration,page_dir,name\n"


def said(source) -> dict[str, str]:
    return {item.name: item.caption for item in source}


def parquet(path, columns, **how):
    pq.write_table(pa.table(columns), path, **how)
    return path


def test_webvids_table_finds_its_films_where_its_scripts_put_them(tmp_path, make_film):
    make_film(tmp_path / "000001_000050" / "11.mp4", frames=20)
    make_film(tmp_path / "12.mp4", frames=20)
    make_film(tmp_path / "videos" / "000051_000100" / "13.mp4", frames=20)
    make_film(tmp_path / "videos" / "14.mp4", frames=20)
    table = tmp_path / "results_2M_train.csv"
    table.write_text(
        WEBVID
        + "11,https://no.where/11.mp4,PT00H00M20S,000001_000050,A man walking in the park.\n"
        + 'x12,https://no.where/12.mp4,PT00H00M20S,,"never downloaded"\n'
        + '12,https://no.where/12.mp4,PT00H00M20S,000001_000050,"Sea, aerial view"\n'
        + "13,https://no.where/13.mp4,PT00H00M20S,000051_000100,Clouds\n"
        + "14,https://no.where/14.mp4,PT00H00M20S,000051_000100,Rain\n"
        + "15,https://no.where/15.mp4,PT00H00M20S,000051_000100,Not there\n"
        + "11,https://no.where/11.mp4,PT00H00M20S,000001_000050,\n"
        + ",https://no.where/11.mp4,PT00H00M20S,000001_000050,no number\n"
    )
    source = VideoFolder(table, 8, SIZE)
    assert said(source) == {
        "000001_000050/11.mp4": "A man walking in the park.",
        "12.mp4": "Sea, aerial view",
        "videos/000051_000100/13.mp4": "Clouds",
        "videos/14.mp4": "Rain",
    }
    assert source.report.dropped == [
        ("x12.mp4", "no such file"),
        ("000051_000100/15.mp4", "no such file"),
        ("000001_000050/11.mp4", "no caption: there is none in results_2M_train.csv line 8"),
        ("results_2M_train.csv line 9", "no file: results_2M_train.csv line 9 names none"),
    ]
    (tmp_path / "captions.csv").write_bytes(table.read_bytes())  # as the table of its folder it says the same
    assert said(VideoFolder(tmp_path, 8, SIZE)) == said(source)
    assert list(Prompts(table))[:3] == ["A man walking in the park.", "never downloaded", "Sea, aerial view"]


def test_webvids_table_as_parquet_with_numbers(tmp_path, make_film):
    make_film(tmp_path / "a_b" / "11.mp4", frames=20)
    make_film(tmp_path / "12.mp4", frames=20)
    columns = {"videoid": [11.0, 12.0, None], "page_dir": ["a_b", None, "a_b"], "name": ["one", "two", "three"]}
    source = VideoFolder(parquet(tmp_path / "w.parquet", columns), 8, SIZE)
    assert said(source) == {"a_b/11.mp4": "one", "12.mp4": "two"}
    assert source.report.dropped == [("w.parquet row 3", "no file: w.parquet row 3 names none")]


def test_a_name_is_a_file_where_the_table_is_not_webvids(tmp_path):
    (tmp_path / "t.csv").write_text("name,caption\na.mp4,said\n")
    assert read_table(tmp_path / "t.csv", "t.csv") == [Row("a.mp4", "said", "t.csv line 2")]
    (tmp_path / "v.csv").write_text("videoid,file,caption\n7,a.mp4,said\n")
    assert read_table(tmp_path / "v.csv", "v.csv") == [Row("a.mp4", "said", "v.csv line 2")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()])
def test_parquets_kinds_of_text(tmp_path, kind):
    texts = ["a man", "Zwölf Hunde", None]
    columns = {"Path": pa.array(["a.mp4", "b.mp4", "c.mp4"]), "TEXT": pa.array(texts).cast(kind), "n": [1, 2, 3]}
    rows = read_table(parquet(tmp_path / "t.parquet", columns), "t.parquet")
    assert [(row.file, row.caption) for row in rows] == [("a.mp4", "a man"), ("b.mp4", "Zwölf Hunde"), ("c.mp4", None)]
    assert rows[2].fault == "no caption: there is none in t.parquet row 3"


def test_parquets_lists_row_groups_and_prompts(tmp_path):
    columns = {"prompt": [[f" number\n{k}", "second"] for k in range(9000)]}
    path = parquet(tmp_path / "p.parquet", columns, row_group_size=1000)
    assert Prompts(path)[8999] == "number 8999"
    assert len(Prompts(path)) == 9000


def test_a_caption_that_is_not_utf8_costs_its_row(tmp_path):
    spoiled = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"M\xe4nner"]).buffers())
    path = parquet(tmp_path / "t.parquet", {"file": ["a.mp4", "b.mp4"], "caption": spoiled})
    good, bad = read_table(path, "t.parquet")
    assert good.caption == "good"
    assert (bad.file, bad.fault) == ("b.mp4", "caption not UTF-8: t.parquet row 2; save the table as UTF-8")


def test_parquet_that_cannot_be_used_is_one_clear_line(tmp_path):
    whole = parquet(tmp_path / "whole.parquet", {"file": ["a.mp4"] * 999, "caption": ["x"] * 999}).read_bytes()
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "hole.parquet").write_bytes(whole[:4] + bytes(60) + whole[64:])
    parquet(tmp_path / "other.parquet", {"a": [1], "B": [2]})
    parquet(tmp_path / "held.parquet", {"image": [{"bytes": b"x", "path": "a.png"}], "text": ["x"]})
    for name, words in {
        "text": "is not a Parquet table, or damaged",
        "cut": "is not a Parquet table, or damaged",
        "hole": "is not a Parquet table, or damaged",
        "other": "no column with the captions: its heading is a, b; expected one of caption, text, prompt",
        "held": "column image holds struct<.*: expected texts",
    }.items():
        with pytest.raises(UserError, match=rf"{name}\.parquet.*{words}") as caught:
            PictureFolder(tmp_path / f"{name}.parquet", SIZE)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot read gone\.parquet: no such file"):
        read_table(Missing("gone.parquet"), "gone.parquet")


def test_without_pyarrow_there_is_one_clear_line(tmp_path, monkeypatch):
    path = parquet(tmp_path / "t.parquet", {"file": ["a.mp4"], "caption": ["x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(UserError) as caught:
        VideoFolder(path, 8, SIZE)
    assert str(caught.value) == f"{path}: reading Parquet needs pyarrow: pip install 'motion-consistency[parquet]'"
