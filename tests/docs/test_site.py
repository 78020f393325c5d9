"""The site is built strictly, is whole, and asks nothing of anybody else, in a real browser where there is one."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from snippets import ROOT

import mcm as package
from mcm.cli import VERBS
from mcm.recipe import Recipe
from mcm.recipes import recipes
from mcm.settings import settings

CHROMIUM = shutil.which("chromium")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Requests(HTMLParser):
    """What a page makes a browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        for name in ("src", "srcset", "poster", "data", *(("href",) if tag == "link" else ())):
            if given.get(name):
                self.found.append(str(given[name]))


def test_pages_and_styles_name_no_other_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= 18
    for page in pages:
        parser = Requests()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found
        for url in parser.found:
            assert not re.match(r"(https?:)?//", url), f"{page.name} fetches {url}"
            if not url.startswith("data:"):
                assert (page.parent / url.partition("?")[0].partition("#")[0]).exists() or url.startswith("/"), url
    for sheet in site.rglob("*.css"):
        for url in re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s]+)", sheet.read_text(encoding="utf-8")):
            assert not re.match(r"(https?:)?//", url), f"{sheet.name} fetches {url}"


def test_the_reference_has_everything(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    for verb in VERBS:
        assert f'id="mcm-{verb}"' in commands
        assert f"mcm {verb}" in commands
    assert "--guidance-scale" in commands
    text = (site / "reference" / "recipes.html").read_text()
    for name, field in settings(Recipe):
        assert f"<code>{name}</code>" in text
        assert field.description, f"{name} is not described"
    for name in recipes():
        assert re.search(rf"<h3[^>]*>{re.escape(name)}<", text), name
    assert text.count("generated_probability") >= len(recipes()), "recipes are shown resolved"
    python = (site / "reference" / "python.html").read_text()
    for name in ("mcm.distill.distill", "mcm.generate.generate", "mcm.evaluation.run.evaluate", "mcm.export.export"):
        assert f'id="{name}"' in python


def test_code_on_the_pages_is_the_source(site: Path) -> None:
    method = (site / "method.html").read_text()
    assert "<!-- source:" not in method
    plain = re.sub(r"<[^>]+>", "", method)
    assert "noisy_pair" in plain
    assert "wanted_motion = players.averaged_motion(wanted)" in plain
    extend = re.sub(r"<[^>]+>", "", (site / "extend.html").read_text())
    assert "class Ancestral(Sampler)" in extend
    assert not (site / "hooks.py").exists()
    assert not (site / "examples").exists()


def test_a_name_that_is_gone_ends_the_build() -> None:
    names = ["mcm.motion.Gone", "mcm.gone.Raw", "mcm.methods.mcm.MCM.gone"]
    code = """
import sys
sys.path.insert(0, "docs")
import hooks
for name in sys.argv[1:]:
    try:
        hooks.source(name)
    except hooks.PluginError as error:
        print(error)
"""
    line = [sys.executable, "-c", code, *names]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, said in zip(names, done.stdout.splitlines(), strict=True):
        assert f"a page asks for the source of {name}" in said


# A page in a frame, and what that frame has fetched (the browser's own traffic is not the page's).
WATCH = """<!DOCTYPE html><title>watch</title><iframe id="shown" src="PAGE"></iframe><pre id="asked"></pre><script>
shown.onload = () => setTimeout(() => {
  const seen = shown.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name);
  asked.textContent = shown.contentDocument.querySelector("h1").innerText + "\\n" + seen.join("\\n");
}, 500);</script>"""


@pytest.fixture
def served(site: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the site, and its address on loopback."""
    shutil.copytree(site, tmp_path / "site")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            return

    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def fetched(site: Path, address: str, page: str) -> list[str]:
    """The heading of a page as Chromium shows it, and the addresses that it asked for."""
    (site / "watch.html").write_text(WATCH.replace("PAGE", f"{page}.html"))
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={site.parent / 'profile'}",
         "--no-first-run", "--virtual-time-budget=4000", "--dump-dom", f"{address}watch.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (text,) = re.findall(r'<pre id="asked">(.*?)</pre>', done.stdout, re.DOTALL)
    return text.splitlines()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; the pages' own requests are read above")
def test_a_browser_asks_nobody_else(served: tuple[Path, str]) -> None:
    site, address = served
    for page in ("index", "method", "reference/recipes"):
        heading, *asked = fetched(site, address, page)
        assert heading
        assert len(asked) >= 5, "styles and scripts"
        assert [url for url in asked if not url.startswith(address)] == []
    index = site / "index.html"
    outside = '<link rel="stylesheet" href="http://outside.invalid/a.css"></head>'
    index.write_text(index.read_text().replace("</head>", outside))
    assert "http://outside.invalid/a.css" in fetched(site, address, "index"), "an outside request would be seen"
