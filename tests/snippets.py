"""The code on the pages: fenced blocks and inline code, with what the page says about running them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")
WITH_EXAMPLES = "<!-- run with the examples -->"
EXAMPLES = "examples"


class Block(NamedTuple):
    """A fenced block. apart: why it is not run as it stands, "examples", or "" where it is."""

    page: str
    line: int
    language: str
    text: str
    apart: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The commands of a shell block, split as a shell does."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def read(page: str) -> tuple[list[Block], str]:
    """The blocks of a page, and the page without them."""
    blocks: list[Block] = []
    rest: list[str] = []
    opened: tuple[int, str, str] | None = None
    inside: list[str] = []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None and line.lstrip().startswith("```"):
            opened = number, line.strip().removeprefix("```").strip(), _apart(rest)
        elif opened is not None and line.strip() == "```":
            blocks.append(Block(page, opened[0], opened[1], "\n".join(inside), opened[2]))
            opened, inside = None, []
            rest.append("")
        elif opened is not None:
            inside.append(line)
        else:
            rest.append(line)
    assert opened is None, f"{page}: a block is not closed"
    return blocks, "\n".join(rest)


def _apart(before: list[str]) -> str:
    last = before[-1].strip() if before else ""
    if last == WITH_EXAMPLES:
        return EXAMPLES
    found = NOT_RUN.fullmatch(last)
    return found["reason"] if found else ""


def blocks(language: str, *pages: str) -> list[Block]:
    """All blocks in a language, on these pages or on all."""
    return [block for page in pages or PAGES for block in read(page)[0] if block.language == language]


def spans(page: str) -> list[str]:
    """Inline code of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", read(page)[1])
