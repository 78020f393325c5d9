"""The page of a report: whole, escaped, bounded, asking for nothing, and with every number of the rows."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import CAPTIONS, make_material, recipe

from mcm.cli import evaluate as command
from mcm.distill import distill
from mcm.evaluation.figures import short, step_figure, ticks
from mcm.evaluation.page import page
from mcm.evaluation.page_style import DARK, LIGHT
from mcm.evaluation.page_wall import WALL_BYTES, Shown, fitting
from mcm.evaluation.report import Report, Row
from mcm.evaluation.wall import FILM_SIDE, Wall
from mcm.generate import generate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EVIL = "<script>alert('x')</script> \"quoted\" & \x00\x1b \udc80"


class Page(HTMLParser):
    """Reads a page; fails on tags that are not closed in order."""

    VOID = ("meta", "br", "img", "source")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def row(**changed: Any) -> Row:
    how: dict[str, Any] = {
        "teacher": "tiny", "method": "mcm", "sampler": "consistency", "steps": 4, "guidance": 1.0, "n": 64,
        "fvd": 0.123456789, "clipsim": 29.51234, "motion_ratio": 0.98765, "fid": 4.4444444,
        "intervals": {"fvd": [0.1111111, 0.1333333], "motion_ratio": [0.9, None]},
    }  # fmt: skip
    return Row(**{**how, **changed})


def shown(size: int = 100, **changed: Any) -> Shown:
    how: dict[str, Any] = {
        "teacher": "tiny", "method": "mcm", "steps": 4, "prompt": "a puppet", "seed": 0, "width": 64, "height": 64,
        "film": b"f" * (size - size // 4), "still": b"s" * (size // 4),
    }  # fmt: skip
    return Shown(**{**how, **changed})


@pytest.mark.parametrize("name", ["quickstart", "zoo"])
def test_a_published_report_becomes_a_page_with_every_number(name: str) -> None:
    report = Report.load(BENCHMARKS / f"{name}.json")
    read = Page(page(report, [shown()], title=name))
    rows = json.loads((BENCHMARKS / f"{name}.json").read_text())["rows"]
    assert json.loads(read.texts["pre"][0]) == rows
    exact = {attrs["value"] for attrs in read.all("data")}
    for one in rows:
        for metric in ("fvd", "clipsim", "motion_ratio", "fid"):
            if one[metric] is not None:
                assert {json.dumps(x) for x in (one[metric], *one["intervals"][metric])} <= exact
    told = " ".join(part for parts in read.texts.values() for part in parts)
    hashes = [protocol.get("weights_sha256", "") for protocol in report.provenance["protocols"].values()]
    for word in (report.provenance["commit"], report.provenance["diffusers"], *hashes):
        assert word in told


def test_a_report_of_old_without_intervals_and_an_empty_one() -> None:
    bare = {"teacher": "t", "method": "m", "sampler": "s", "steps": 4, "guidance": 1.0, "n": 8, "fvd": 3.25}
    read = Page(page(Report([Row.from_dict(bare)])))
    assert "3.25" in {attrs["value"] for attrs in read.all("data")}
    assert not read.all("img")
    assert "nothing was measured" in page(Report())
    Page(page(Report([row(fvd=math.nan, clipsim=None, fid=None, motion_ratio=None, intervals={})])))


def test_the_page_asks_for_nothing() -> None:
    report = Report([row()], {"command": ["mcm", "https://somewhere.example/x.js"]})
    text = page(report, [shown()], reference="http://somewhere.example/clips")
    read = Page(text)
    policy = next(a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form", "a"})
    for _, attrs in read.tags:
        for name in ("src", "srcset", "href", "xlink:href", "poster", "data"):
            assert attrs.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attrs)
    style = read.texts["style"][0]
    assert "url(" not in style
    assert "@import" not in style


def test_everything_from_outside_is_escaped() -> None:
    evil = row(teacher=EVIL, method=EVIL, sampler=EVIL, notes=(EVIL,), fids={EVIL: 1.0}, seed=3)
    report = Report([evil], {"command": [EVIL], EVIL: {EVIL: EVIL}, "protocols": {EVIL: {EVIL: EVIL}}})
    clip = shown(teacher=EVIL, method=EVIL, prompt=EVIL)
    text = page(report, [clip], title=EVIL, reference=EVIL, settings={EVIL: EVIL})
    read = Page(text)
    assert not read.all("script")
    assert "alert(" in text  # shown as the text that it is
    assert not re.search(r"[\x00-\x08\x1b]", text)
    text.encode("utf-8")
    assert all('"quoted"' in attrs["alt"] for attrs in read.all("img"))


def test_tables_and_pictures_say_what_they_are() -> None:
    read = Page(page(Report([row(), row(steps=1)]), [shown(), shown(steps=1)]))
    assert all(attrs.get("scope") in ("row", "col") for attrs in read.all("th"))
    assert all(attrs["alt"] for attrs in read.all("img"))
    named = {attrs["id"] for attrs in read.all("title") if "id" in attrs}
    figures = [attrs for attrs in read.all("svg") if attrs.get("role") == "img"]
    assert len(figures) == 5  # four metrics against steps, and the motion
    assert {attrs["aria-labelledby"] for attrs in figures} == named
    assert len(read.all("caption")) == len(read.all("table"))


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_both_themes_can_be_read(theme: dict[str, str]) -> None:
    for ground in ("paper", "panel"):
        assert _contrast(theme["ink"], theme[ground]) >= 4.5
        assert _contrast(theme["muted"], theme[ground]) >= 4.5
    for name in theme:
        if name[1:].isdigit():
            assert _contrast(theme[name], theme["paper"]) >= 3, name


def test_steps_stand_on_a_log_2_axis_and_bars_span_the_interval() -> None:
    rows = [row(steps=s, fvd=v, intervals={"fvd": [v - 1, v + 1]}) for s, v in ((1, 8.0), (2, 4.0), (4, 2.0), (8, 1.0))]
    figure = step_figure(rows, "fvd", "FVD", "f", {"mcm": 0})
    at = [(float(x), float(y)) for x, y in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", figure)]
    gaps = np.diff([x for x, _ in at])
    np.testing.assert_allclose(gaps, gaps[0], atol=0.2)
    one = (at[0][1] - at[3][1]) / (1.0 - 8.0) * -1  # y for a unit of FVD, downwards from the top
    bars = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", figure)
    for (x, y), (bar, low, high) in zip(at, bars, strict=True):
        assert float(bar) == x
        np.testing.assert_allclose([float(low) - y, float(high) - y], [-one, one], atol=0.15)
    assert "8.000 at 1 step" in figure
    assert step_figure([row(fid=None)], "fid", "FID", "f", {"mcm": 0}) == ""


def test_numbers_for_reading_and_ticks() -> None:
    assert [short(x) for x in (123.456, 29.5123, 0.12345, 0.0123456, 1e-7, 0.0)] == [
        "123.5", "29.51", "0.123", "0.01235", "1e-07", "0",
    ]  # fmt: skip
    assert short(9.8765, 12.0) == "9.88"
    for low, high in ((0.0, 0.36), (0.0, 1234.0), (85.6, 91.2), (3.0, 3.0), (0.0, 0.0), (-2.0, 1e-3), (0.0, 1e30)):
        found = ticks(low, high)
        assert found[0] <= low
        assert found[-1] >= high
        assert 2 <= len(found) <= 8


def test_the_wall_is_bounded_and_says_so() -> None:
    every = [shown(400_000, prompt=f"prompt {k}", steps=s) for s in (1, 2) for k in range(6)]
    text = page(Report([row()]), every)
    assert "Shown are 6 of 12 clips" in text
    assert "prompt 2" in text
    assert "prompt 3" not in text
    assert len(text) < 4 / 3 * WALL_BYTES + 50_000
    assert "Shown are" not in page(Report([row()]), every[:3])
    (part,) = fitting([shown(60, steps=s) for s in (1, 2, 4)], 160).values()
    assert [steps for _, _, steps in part] == [1, 2]  # of a prompt that is too large for the page, what fits
    assert fitting([shown(60)], 10) == {}
    Page(page(Report([row()]), [shown(60)], limit=10))


def test_a_wide_wall_stands_in_parts_that_fit_a_screen_and_paper() -> None:
    """Every clip once; the steps of a system together."""
    rows = [row(method=f"m{k}", steps=s) for k in range(5) for s in (1, 2, 4, 8)]
    every = [shown(method=r.method, steps=r.steps, prompt=p) for p in ("one", "two") for r in rows]
    read = Page(page(Report(rows), every))
    films = [attrs["alt"] for attrs in read.all("img") if not attrs["alt"].startswith("one frame")]
    assert sorted(films) == sorted(f"{c.method} in {c.steps} step{'s' * (c.steps > 1)}: {c.prompt}" for c in every)
    captions = [words for words in read.texts["caption"] if "part" in words]
    assert captions == [f" and its students, part {k} of 3" for k in (1, 2, 3)] * 2  # films, frames
    sheets = "".join(page(Report(rows), every)).split('<table class="wall">')[1:]
    heads = [re.findall(r"<bdi>(m\d)</bdi><br>", sheet.partition("</thead>")[0]) for sheet in sheets]
    assert heads == [["m0"] * 4 + ["m1"] * 4, ["m2"] * 4 + ["m3"] * 4, ["m4"] * 4]
    many = [shown(steps=s) for s in range(1, 21)]
    assert page(Report([row()]), many).count('<table class="wall">') == 3


def test_a_wall_keeps_the_first_clips_of_each_row_encoded() -> None:
    wall = Wall(3)
    clips = torch.rand(2, 3, 5, 16, 24) * 2 - 1
    for start in (0, 2, 4):
        assert wall.add(clips, [f"p{start}", f"p{start + 1}"], 7, 8.0, "t", "mcm", 1) >= 0
    wall.add(torch.zeros(1, 3, 2, 400, 600), ["large"], 7, 8.0, "t", "mcm", 2)
    assert [(one.steps, one.prompt, one.seed) for one in wall.shown] == [
        (1, "p0", 7), (1, "p1", 8), (1, "p2", 9), (2, "large", 7),
    ]  # fmt: skip
    with Image.open(io.BytesIO(wall.shown[0].film)) as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (5, (24, 16), 0)  # pyright: ignore
    assert (wall.shown[-1].width, wall.shown[-1].height) == (FILM_SIDE, round(FILM_SIDE * 400 / 600))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_material(tmp_path_factory.mktemp("material"))
    distill(recipe(folder, training__updates=1), folder / "run")
    return folder


def test_evaluate_writes_the_page_with_the_very_clips_that_were_measured(place: Path, tmp_path: Path) -> None:
    out, clips = tmp_path / "scores", str(place / "clips")
    command.evaluate(str(place / "run"), reference=clips, steps=(1, 2), metrics=("motion",), count=4, seed=5, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["evaluate.json", "report.html", "report.json"]
    read = Page((out / "report.html").read_text(encoding="utf-8"))
    assert json.loads(read.texts["pre"][0]) == json.loads((out / "report.json").read_text())["rows"]
    films = [attrs for attrs in read.all("img") if not attrs["alt"].startswith("one frame")]
    asked = [CAPTIONS[k % 3] for k in range(4)]
    assert [attrs["alt"] for attrs in films] == [
        f"{system}: {prompt}" for prompt in asked for system in ("dpm++ in 25 steps", "lcm in 1 step", "lcm in 2 steps")
    ]
    stills = [attrs for attrs in read.all("img") if attrs["alt"] == f"one frame of lcm in 2 steps: {asked[1]}"]
    (video,) = generate(place / "run", asked[1], seeds=[6], steps=2)
    with Image.open(io.BytesIO(base64.b64decode(stills[0]["src"].partition(",")[2]))) as still:
        middle = video.frames[len(video.frames) // 2].astype(int)
        assert np.abs(np.asarray(still.convert("RGB")).astype(int) - middle).max() <= 1  # another batch, rounded


def test_seeds_and_several_teachers_have_places_of_their_own() -> None:
    rows = [row(seed=0), row(seed=1, fvd=0.5), replace(row(), teacher="other")]
    read = Page(page(Report(rows), [shown(), shown(teacher="other")]))
    assert read.texts["h3"].count("tiny") == 3  # measured, curves, motion
    assert read.texts["h3"].count("other") == 3
    identities = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(identities) == len(set(identities))


def test_making_a_page_loads_no_torch() -> None:
    code = "import sys, mcm.evaluation.page; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
