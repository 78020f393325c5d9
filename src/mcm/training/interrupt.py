"""Ctrl-C that waits for a good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held() -> Iterator[None]:
    """Inside, a first Ctrl-C waits: its KeyboardInterrupt is raised at the end. A second one is raised at once.

    For what must not be left half done. Where signals cannot be had (in other threads than the main one, or where the
    handler was set outside Python, or Ctrl-C is ignored) nothing is held.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if waiting:
            signal.signal(signal.SIGINT, before)
            waiting.clear()
            before(number, frame)
        else:
            waiting.append((number, frame))

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        before(*waiting[0])
