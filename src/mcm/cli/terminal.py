"""What a verb says while and after it works: progress on stderr, results on stdout, for people or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import progress as bars
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mcm.output import Progress

_EVERY = 15.0  # seconds between the lines of a log file


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar with the time left for each phase on a terminal; elsewhere a line now and then."""
    _quiet()
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with _Drawn(*columns, console=console) as drawn:
        yield _Bars(drawn)


def _quiet() -> None:
    """One progress display: the libraries' own bars and notices stay away."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


class _Drawn(bars.Progress):
    """Bars, and below them the note of the latest phase, which is too long to stand beside its bar."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.tasks and (note := self.tasks[-1].fields["note"]):
            yield Text(note)


class _Bars:
    def __init__(self, drawn: bars.Progress) -> None:
        self.drawn = drawn
        self.tasks: dict[str, bars.TaskID] = {}

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        if what not in self.tasks:
            # A run that goes on starts in the middle: the time left is reckoned from there.
            self.tasks[what] = self.drawn.add_task(what, completed=done, total=total or None, note=note)
        self.drawn.update(self.tasks[what], completed=done, total=total or None, note=note)


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.what = ""
        self.start = (0.0, 0)
        self.said = 0.0

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if what != self.what:
            self.what, self.start = what, (now, done)
        elif now - self.said < _EVERY and done != total:
            return
        self.said = now
        since, first = self.start
        left = ""
        if first < done < total:
            left = f", {_clock((now - since) / (done - first) * (total - done))} left"
        count = f"{done}/{total}" if total else str(done)
        self.console.print(
            f"{what}: {count}{left}{', ' + note if note else ''}", markup=False, soft_wrap=True
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def say(text: str) -> None:
    """A line for people, on stdout."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def tell(data: Any) -> None:
    """The result for programs: one JSON document on stdout."""
    json.dump(data, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people, on stdout; without names of columns it has no head."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # a Text takes brackets for what they are
    console = Console()
    if title:
        console.print(Text(title, style="bold"))
    console.print(Padding(table, (0, 0, 1, 2)))

def cell(value: object) -> str:
    """A number or a word for a table; a dash for what was not measured."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
