"""The page in a real browser (headless Chromium): what somebody sees, types, uploads, stops and reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
pytest.importorskip("gradio", reason='gradio is not installed (pip install "motion-consistency[demo]")')

from playwright.sync_api import Browser, Page, expect  # noqa: E402
from tiny_demo import Held, idle, make_place, page  # noqa: E402

from mcm.app.work import Workshop  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)")
SLOW = 60_000  # ms; nothing is timed here, a busy machine must only not fail


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[tuple[str, Workshop]]:
    with page(place) as both:
        yield both


@pytest.fixture(scope="module")
def url(server: tuple[str, Workshop]) -> str:
    return server[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: $MCM_SCREENSHOTS, or pytest's own folder."""
    folder = Path(os.environ.get("MCM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def tab(browser: Browser, url: str, request: pytest.FixtureRequest, pictures: Path) -> Iterator[Page]:
    """The page, opened anew; whatever it asks of the network and says on its console is looked at afterwards."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    one = context.new_page()
    one.set_default_timeout(SLOW)
    asked, faults = [], []
    one.on("request", lambda call: asked.append(call.url))
    one.on("pageerror", lambda error: faults.append(str(error)))
    one.goto(url)
    expect(one.locator("#make")).to_be_visible(timeout=SLOW)
    yield one
    one.screenshot(path=pictures / f"{request.node.name}.png")
    context.close()
    hosts = {urlsplit(address).hostname for address in asked if not address.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert faults == []


def choose(tab: Page, steps: int, teacher_steps: int) -> None:
    for name, value in (("steps", steps), ("teacher-steps", teacher_steps)):
        field = tab.locator(f"#{name} input[type=number]")
        field.fill(str(value))
        field.press("Tab")


def plays(tab: Page, number: int) -> bool:
    """Whether the video of a place is playing: its time changes (a short one may begin anew)."""
    video = tab.locator(f"#film-{number} video")
    expect(video).to_be_visible(timeout=SLOW)
    script = """async v => {
        const seen = new Set();
        for (let k = 0; k < 100 && seen.size < 3; k++) {
            seen.add(v.currentTime); await new Promise(r => setTimeout(r, 100));
        }
        return seen.size >= 3 && v.videoWidth > 0 && !v.paused;
    }"""
    return video.evaluate(script)


def test_student_and_teacher_side_by_side(tab: Page, pictures: Path) -> None:
    tab.locator("#prompt textarea").fill("a <b>red</b> puppet walks")
    choose(tab, 2, 3)
    tab.locator("#make").click()
    expect(tab.locator("#told")).to_contain_text("Done: seed 0, a <b>red</b> puppet walks", timeout=SLOW)
    expect(tab.locator("#words-0")).to_contain_text("learner 2 steps")
    expect(tab.locator("#words-1")).to_contain_text("teacher 3 steps")
    assert plays(tab, 0)
    assert plays(tab, 1)
    with tab.expect_download() as download:
        tab.locator("#files-0 a[download]").nth(1).click()
    assert Path(download.value.path()).read_bytes()[:4] == b"GIF8"
    choose(tab, 1, 1)
    tab.locator("#seed input").fill("5")
    tab.locator("#make").click()
    expect(tab.locator("#told")).to_contain_text("Done: seed 5", timeout=SLOW)
    expect(tab.locator("#words-0")).to_contain_text("learner 1 step,")
    tab.screenshot(path=pictures / "side-by-side.png")
    tab.get_by_role("tab", name="Gallery").click()
    expect(tab.locator("#gallery video")).to_have_count(4, timeout=SLOW)


def test_cancel_stops_between_two_steps(tab: Page, server: tuple[str, Workshop]) -> None:
    workshop = server[1]
    with Held(workshop.systems["learner"]) as held:
        choose(tab, 8, 8)
        tab.locator("#make").click()
        expect(tab.locator("#words-0")).to_contain_text("step 1 of 8", timeout=SLOW)
        expect(tab.locator("#look-0 img")).to_be_visible(timeout=SLOW)
        tab.locator("#cancel").click()
        expect(tab.locator("#told")).to_contain_text("Cancelled", timeout=SLOW)
        held.go.set()
        idle()
        assert held.looks < 8
    choose(tab, 1, 1)
    tab.locator("#make").click()  # and the page works on
    expect(tab.locator("#told")).to_contain_text("Done: seed 0", timeout=SLOW)


def upload(tab: Page, *files: Path) -> None:
    tab.locator("#pose button").first.click()
    tab.locator("#uploads input[type=file]").set_input_files([str(file) for file in files])
    expect(tab.locator("#uploads")).to_contain_text(files[0].stem, timeout=SLOW)


def test_an_uploaded_pose_and_a_chosen_one(tab: Page, place: Path) -> None:
    choose(tab, 1, 1)
    upload(tab, place / "wave.json")
    tab.locator("#make").click()
    expect(tab.locator("#told")).to_contain_text("Done", timeout=SLOW)
    assert plays(tab, 0)
    tab.locator("#action input").click()
    tab.get_by_role("option", name="kick").click()
    tab.locator("#make").click()
    expect(tab.get_by_text("choose an action or upload files, not both")).to_be_visible(timeout=SLOW)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"hello", "notes.txt is no pose; expected OpenPose's .json, or pictures of skeletons"),
        ("broken.json", b"[", "pose broken.json: cannot be read as JSON"),
        ("picture.png", b"no picture", "picture.png cannot be used: not a picture"),
    ],
)
def test_a_bad_upload_is_told_in_words(tab: Page, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    choose(tab, 1, 1)
    upload(tab, tmp_path / name)
    tab.locator("#make").click()
    toast = tab.get_by_text(words)
    expect(toast).to_be_visible(timeout=SLOW)
    assert str(tmp_path) not in (toast.text_content() or "")
    assert "/tmp" not in (toast.text_content() or "")


def test_the_training_tab_follows_a_run(tab: Page, place: Path) -> None:
    tab.get_by_role("tab", name="Training").click()
    expect(tab.locator("#training-told")).to_contain_text("update 19", timeout=SLOW)
    expect(tab.locator("#training-told")).to_contain_text("frozen motion: lower <it>")
    expect(tab.locator("#previews img").first).to_be_visible(timeout=SLOW)
    expect(tab.locator("#losses canvas, #losses svg").first).to_be_visible(timeout=SLOW)
    with (place / "run" / "log.jsonl").open("a") as log:
        log.write('m": 0.5}\n{"update": 21, "lcm": 0.25, "adversarial": 0.5}\n')
    expect(tab.locator("#training-told")).to_contain_text("update 21", timeout=SLOW)
    expect(tab.locator("#training-told")).to_contain_text("lcm 0.2500")
