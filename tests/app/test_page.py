"""The page in a real browser (headless Chromium): what somebody sees, types, uploads, stops and reads."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
pytest.importorskip("gradio", reason='gradio is not installed (pip install "motion-consistency[demo]")')

import httpx
from chromium import SLOW, needs_chromium
from playwright.sync_api import Browser, Page, expect
from tiny_demo import Held, idle, make_place, page

from mcm.app.wanted import Limits
from mcm.app.work import Workshop

pytestmark = needs_chromium
LIMITS = Limits(queue=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[tuple[str, Workshop]]:
    with page(place, LIMITS) as both:
        yield both


@pytest.fixture(scope="module")
def url(server: tuple[str, Workshop]) -> str:
    return server[0]


@pytest.fixture
def tab(browser: Browser, url: str, request: pytest.FixtureRequest, pictures: Path) -> Iterator[Page]:
    """The page, opened anew; whatever it asks of the network and says on its console is looked at afterwards.

    A test's parameter of this fixture is what the browser's context is made with.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **getattr(request, "param", {})})
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


def test_cancel_stops_between_two_steps(tab: Page, server: tuple[str, Workshop], pictures: Path) -> None:
    workshop = server[1]
    with Held(workshop.systems["learner"]) as held:
        choose(tab, 8, 8)
        tab.locator("#make").click()
        expect(tab.locator("#words-0")).to_contain_text("step 1 of 8", timeout=SLOW)
        expect(tab.locator("#look-0 img")).to_be_visible(timeout=SLOW)
        box = tab.locator("#look-0 img").bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 200, "large enough to look at, however small the frames"
        tab.screenshot(path=pictures / "look.png")
        tab.locator("#cancel").click()
        expect(tab.locator("#told")).to_contain_text("Cancelled", timeout=SLOW)
        held.go.set()
        idle()
        assert held.looks < 8
    choose(tab, 1, 1)
    tab.locator("#make").click()  # and the page works on
    expect(tab.locator("#told")).to_contain_text("Done: seed 0", timeout=SLOW)


def test_a_closed_tab_stops_its_work(browser: Browser, url: str, server: tuple[str, Workshop]) -> None:
    with Held(server[1].systems["learner"]) as held:
        context = browser.new_context()
        one = context.new_page()
        one.set_default_timeout(SLOW)
        one.goto(url)
        choose(one, 8, 8)
        one.locator("#make").click()
        expect(one.locator("#words-0")).to_contain_text("step 1 of 8", timeout=SLOW)
        context.close()
        time.sleep(1)
        held.go.set()
        idle()
        assert held.looks < 8


def joined(url: str) -> httpx.Response:
    """A request by the API, which waits where another is at work."""
    data = ["a red puppet walks", ["learner"], 1, 1, 0, None, None, None, None]
    return httpx.post(f"{url}gradio_api/call/generate", json={"data": data}, timeout=SLOW / 1000, trust_env=False)


def test_who_waits_sees_the_queue_and_who_comes_too_late_is_told(
    tab: Page, url: str, server: tuple[str, Workshop], pictures: Path
) -> None:
    choose(tab, 1, 1)
    with server[1]._one:  # whoever works waits
        assert joined(url).status_code == 200
        while httpx.get(f"{url}gradio_api/queue/status", trust_env=False).json()["queue_size"]:
            time.sleep(0.1)  # until it has begun
        tab.locator("#make").click()
        expect(tab.locator("#turn")).to_contain_text("queue: 1/1", timeout=SLOW)
        tab.screenshot(path=pictures / "queue.png")
        assert {joined(url).status_code for _ in range(4)} == {200, 503}
        other = tab.context.new_page()
        other.set_default_timeout(SLOW)
        other.goto(url)
        other.locator("#make").click()
        expect(other.locator(".toast-body")).to_contain_text("busy. Please try again", timeout=SLOW)
        other.screenshot(path=pictures / "busy.png")
        other.close()
    expect(tab.locator("#told")).to_contain_text("Done", timeout=SLOW)
    idle()


@pytest.mark.parametrize(
    "tab",
    [{"color_scheme": "dark"}, {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}}],
    ids=["dark", "narrow"],
    indirect=True,
)
def test_dark_and_on_a_telephone(tab: Page) -> None:
    choose(tab, 1, 1)
    tab.locator("#make").click()
    expect(tab.locator("#told")).to_contain_text("Done", timeout=SLOW)
    wide, seen, ground, ink = tab.evaluate("""() => [
        document.documentElement.scrollWidth, innerWidth, getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector("#told p")).color].map(x => typeof x == "string" ?
        x.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0) : x)""")
    assert wide <= seen, "nothing stands over the side"
    assert ground < 150 < 600 < ink  # sums of red, green and blue


def upload(tab: Page, *files: Path) -> None:
    tab.locator("#pose button").first.click()
    tab.locator("#uploads input[type=file]").set_input_files([str(file) for file in files])
    expect(tab.locator("#uploads")).to_contain_text(files[0].stem, timeout=SLOW)


def test_an_uploaded_pose_and_a_chosen_one(tab: Page, place: Path, pictures: Path) -> None:
    choose(tab, 1, 1)
    upload(tab, place / "wave.json")
    skeleton = tab.locator("#pose-look img")
    expect(skeleton).to_have_attribute("alt", "skeleton: wave.json", timeout=SLOW)
    tab.locator("#make").click()
    expect(tab.locator("#told")).to_contain_text("Done", timeout=SLOW)
    assert plays(tab, 0)
    tab.locator("#action input").click()
    tab.get_by_role("option", name="kick").click()
    both = "choose an action or upload files, not both"
    expect(tab.locator("#pose-look")).to_contain_text(both, timeout=SLOW)
    tab.locator("#make").click()
    expect(tab.locator(".toast-body")).to_contain_text(both, timeout=SLOW)
    expect(tab.locator("#told")).to_contain_text(f"Not made. pose: {both}", timeout=SLOW)
    tab.locator("#uploads button[aria-label='Clear']").click()
    expect(skeleton).to_have_attribute("alt", "skeleton: kick", timeout=SLOW)
    assert skeleton.evaluate("i => i.decode().then(() => i.naturalWidth)") == 160
    tab.screenshot(path=pictures / "pose.png")


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
    expect(tab.locator("#pose-look")).to_contain_text(words, timeout=SLOW)  # at once,
    tab.locator("#make").click()
    toast = tab.locator(".toast-body")
    expect(toast).to_contain_text(words, timeout=SLOW)
    expect(tab.locator("#told")).to_contain_text("Not made.", timeout=SLOW)
    expect(tab.locator("#told")).to_contain_text(words)  # and where it stays
    for said in (toast, tab.locator("#told"), tab.locator("#pose-look")):
        assert str(tmp_path) not in (said.text_content() or "")
        assert "/tmp" not in (said.text_content() or "")
    time.sleep(0.5)  # the note fades in


def test_the_training_tab_follows_a_run(tab: Page, place: Path) -> None:
    tab.get_by_role("tab", name="Training").click()
    expect(tab.locator("#training-told")).to_contain_text("update 19", timeout=SLOW)
    expect(tab.locator("#training-told")).to_contain_text("frozen motion: lower <it>")
    expect(tab.locator("#previews img")).to_have_count(1, timeout=SLOW)
    for plot in ("#losses", "#motion"):
        expect(tab.locator(f"{plot} canvas, {plot} svg.marks").first).to_be_visible(timeout=SLOW)
    for name in ("lcm", "adversarial"):  # a plot for each
        expect(tab.locator("#losses")).to_contain_text(name)
    with (place / "run" / "log.jsonl").open("a") as log:
        log.write('m": 0.5}\n{"update": 21, "lcm": 0.25, "adversarial": 0.5}\n{"update": 21, "motion ratio": 0.9}\n')
    shutil.copyfile(place / "run/previews/update-0000010.png", place / "run/previews/update-0000020.png")
    expect(tab.locator("#training-told")).to_contain_text("update 21", timeout=SLOW)
    expect(tab.locator("#training-told")).to_contain_text("lcm 0.2500")
    expect(tab.locator("#training-told")).to_contain_text("motion ratio 0.90")
    expect(tab.locator("#previews img")).to_have_count(2, timeout=SLOW)  # they come as they are made
    tab.wait_for_timeout(2000)  # for the screenshot: plots are drawn a little later
