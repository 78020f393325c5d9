"""The page of a report in headless Chromium: opened from disk, light and dark, on a telephone and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")

import torch
from chromium import SLOW, needs_chromium
from playwright.sync_api import Browser, Page

from mcm.evaluation.page import page
from mcm.evaluation.report import Report
from mcm.evaluation.wall import Wall
from mcm.pocket.sources import PocketClips

ROOT = Path(__file__).parents[2]
pytestmark = needs_chromium
PAPER = {"width": 1031, "height": 703}  # A4 less the margins of the page's style, in CSS pixels


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo's published numbers, with the laboratory's own film on the wall."""
    found = Report.load(ROOT / "benchmarks" / "zoo.json")
    wall = Wall(2)
    clips = list(PocketClips("broadcast", 8, (64, 64), 2))
    many = [(row.teacher, row.method, row.steps) for row in found.rows]
    many += [("pocket-modelscope", f"system-{k}", steps) for k in range(6) for steps in (1, 2, 4, 8)]  # a bench's wall
    for teacher, method, steps in many:
        film, prompts = torch.stack([clip.video for clip in clips]), [clip.caption for clip in clips]
        wall.add(film, prompts, 0, 8.0, teacher, method, steps)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(found, wall.shown, title="The zoo", reference="pocket:broadcast"), encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page from disk, in a context of the test's parameters; it asks for no other file and reports no fault."""
    context = browser.new_context(**request.param)
    one = context.new_page()
    one.set_default_timeout(SLOW)
    asked, faults = [], []
    one.on("request", lambda call: asked.append(call.url))
    one.on("pageerror", lambda error: faults.append(str(error)))
    one.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    one.goto(report.as_uri())
    yield one
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert faults == []


def colours(tab: Page) -> tuple[int, int]:
    """Sums of red, green and blue of the ground and of the text."""
    ground, ink = tab.evaluate("""() => ["backgroundColor", "color"].map(name =>
        getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0))""")
    return ground, ink


def outside(tab: Page) -> list[str]:
    """What stands over the right edge and cannot be scrolled to in a frame of its own."""
    return tab.evaluate("""() => [...document.querySelectorAll("main *")].filter(one =>
        one.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !one.closest(".scroll, pre"))
        .map(one => one.tagName + " " + one.textContent.slice(0, 40))""")


LIGHT = {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "light"}
DARK = {**LIGHT, "color_scheme": "dark"}
TELEPHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}


@pytest.mark.parametrize("tab", [LIGHT, DARK, TELEPHONE], ids=["light", "dark", "telephone"], indirect=True)
def test_on_a_screen(tab: Page, pictures: Path, request: pytest.FixtureRequest) -> None:
    ground, ink = colours(tab)
    if request.node.callspec.id == "light":
        assert ink < 150 < 700 < ground
    else:
        assert ground < 150 < 600 < ink
    assert outside(tab) == []
    widths = tab.locator("img").evaluate_all(
        "async images => Promise.all(images.map(one => one.decode().then(() => one.naturalWidth)))"
    )
    assert len(widths) >= 12
    assert set(widths) == {64}
    tab.screenshot(path=pictures / f"report-{request.node.callspec.id}.png", full_page=True)


@pytest.mark.parametrize("tab", [LIGHT], ids=["light"], indirect=True)
def test_the_films_move(tab: Page) -> None:
    film = tab.locator(".wall:not(.frames) img").first
    film.scroll_into_view_if_needed()
    seen = set()
    for _ in range(30):
        seen.add(film.screenshot())
        tab.wait_for_timeout(100)
        if len(seen) > 2:
            break
    assert len(seen) > 2


@pytest.mark.parametrize("tab", [{**DARK, "viewport": PAPER}], ids=["dark"], indirect=True)
def test_on_paper(tab: Page, pictures: Path) -> None:
    """Light whatever the screen is, with nothing cut off at the right: paper cannot be scrolled."""
    tab.emulate_media(media="print")
    ground, ink = colours(tab)
    assert ink < 150 < 700 < ground
    cut = tab.evaluate("""() => [...document.querySelectorAll("main *")].filter(one => one.checkVisibility() &&
        one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
        .map(one => one.tagName + " " + one.textContent.slice(0, 40))""")
    assert cut == []
    paper = tab.pdf(path=pictures / "report.pdf", prefer_css_page_size=True)
    assert paper[:5] == b"%PDF-"
    systems = len(Report.load(ROOT / "benchmarks" / "zoo.json").rows) + 24  # of the table, and more on the wall
    assert 2 <= paper.count(b"/Type /Page\n") <= 0.4 * systems  # 12 for 30
    tab.screenshot(path=pictures / "report-paper.png", full_page=True)
