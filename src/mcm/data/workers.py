"""Decoding in worker processes: in order, a few items ahead, and no film takes the run with it.

A film on which FFmpeg crashes or never ends costs its own place only: the process is ended, the film is named, and the
others that were under way are done again, one at a time, so that it is known which one it was.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context, parent_process
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items under way for each worker: what bounds the memory


class Workers(Generic[Item, Result]):
    """Calls `work` on items in `count` processes (0: in this one); a context manager.

    work and items are pickled to the workers, so `work` is a function of a module, or a partial of one. limit:
    seconds that one item may take. lost(item, why) makes the result of an item that crashed its process or took too
    long; within this process (count 0) neither can be told apart from a crash of the run.
    """

    def __init__(
        self, work: Callable[[Item], Result], count: int, limit: float, lost: Callable[[Item, str], Result]
    ) -> None:
        self.work, self.count, self.limit, self.lost = work, count, limit, lost
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers[Item, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """The results in the order of the items; at most `AHEAD` items a worker are begun before they are asked for."""
        if not self.count:
            yield from map(self.work, items)
            return
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        left = iter(items)
        try:
            while True:
                while len(waiting) < self.count * AHEAD and (item := next(left, _END)) is not _END:
                    waiting.append((item, self._begin(item)))  # pyright: ignore[reportArgumentType]
                if not waiting:
                    return
                item, future = waiting.popleft()
                try:
                    result = future.result(self.limit)
                except (BrokenProcessPool, TookTooLong):
                    self.close()
                    result = self._alone(item)
                    waiting = deque((other, self._begin(other)) for other, _ in waiting)
                yield result
        finally:
            for _, future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the workers, also those that are stuck in a film."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        self._pool = None

    def _begin(self, item: Item) -> Future[Result]:
        try:
            return self._open(self.count).submit(self.work, item)
        except BrokenProcessPool:  # a film that is under way has just crashed it: its turn comes first
            broken: Future[Result] = Future()
            broken.set_exception(BrokenProcessPool())
            return broken

    def _alone(self, item: Item) -> Result:
        """With a process to itself, so that a crash is this item's own."""
        try:
            return self._open(1).submit(self.work, item).result(self.limit)
        except BrokenProcessPool:
            return self.lost(item, "decoder crashed: the film ends the process that reads it")
        except TookTooLong:
            return self.lost(item, f"decoder stuck: not done after {self.limit:g} s")
        finally:
            self.close()

    def _open(self, count: int) -> ProcessPoolExecutor:
        if self._pool is None:
            # Forked from a process of its own that has torch loaded and no threads: quick, and safe where a plain
            # fork of this one, with its threads and its GPU, is not.
            method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
            context = get_context(method)
            if method == "forkserver":
                context.set_forkserver_preload(["mcm.data.readers"])
            self._pool = ProcessPoolExecutor(count, context, _begun)
        return self._pool


_END = object()


def _begun() -> None:
    """A worker uses one thread, and ends with the process that began it, even where that one is killed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its workers
    torch.set_num_threads(1)
    parent = parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
