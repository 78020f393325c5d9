"""Ctrl-C and SIGTERM that wait for a good moment, and for the other ranks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Launchers pass a Ctrl-C on that the terminal has sent as well: within this many seconds that is one, not two.
_ONE_PRESS = 1.0


class StoppedTogether(KeyboardInterrupt):
    """All ranks stop at the same place."""


@contextmanager
def held() -> Iterator[None]:
    """Inside, a first Ctrl-C waits: its KeyboardInterrupt is raised at the end. A second one is raised at once.

    For what must not be left half done. SIGTERM is held alike where Python handles it (see `ended_politely`). Where
    signals cannot be had (in other threads than the main one, or where the handler was set outside Python, or Ctrl-C is
    ignored) nothing is held.
    """
    before = _handlers()
    if not before:
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if waiting:
            _restore(before)
            waiting.clear()
            before[number](number, frame)
        else:
            waiting.append((number, frame))

    for number in before:
        signal.signal(number, wait)
    try:
        yield
    finally:
        _restore(before)
    if waiting:
        before[waiting[0][0]](*waiting[0])


@contextmanager
def together(any_rank: Callable[[bool], bool]) -> Iterator[Callable[[], None]]:
    """Gives a function for all ranks to call at the same places: it raises StoppedTogether on all of them where any
    one was asked to stop, by Ctrl-C or SIGTERM, since the last call. A second Ctrl-C is raised at once.

    any_rank: whether any rank says so; see `Ranks.any`.
    """
    before = _handlers()
    asked: list[float] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and time.monotonic() - asked[0] > _ONE_PRESS:
            before[number](number, frame)
        elif not asked:
            asked.append(time.monotonic())

    def stop_together() -> None:
        if any_rank(bool(asked)):
            raise StoppedTogether

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop_together
    finally:
        _restore(before)


@contextmanager
def ended_politely() -> Iterator[None]:
    """Inside, SIGTERM, how clusters end a job, is a Ctrl-C, unless somebody else handles it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _handlers() -> dict[int, Callable[[int, FrameType | None], object]]:
    """What Python does on each signal; none in another thread than the main one."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in found.items() if callable(handler)}


def _restore(handlers: dict[int, Callable[[int, FrameType | None], object]]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
