"""A request's videos as they come: a look after every step, then the films, one system after the other."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from mcm.app.posing import opened
from mcm.app.systems import Systems
from mcm.app.wanted import Wanted
from mcm.errors import UserError
from mcm.generate import Video, generate, save_video
from mcm.samplers.loop import Step


class Look(NamedTuple):
    """A step of a system's sampler: some frames of the denoiser's word, uint8 (N, H, W, 3)."""

    system: str
    done: int
    steps: int
    frames: np.ndarray


class Film(NamedTuple):
    """A system's video in files, MP4 and GIF; seconds: what it took without the looks. settings: what made it."""

    system: str
    mp4: Path
    gif: Path
    seconds: float
    settings: dict[str, Any]


class Stopped(Exception):  # noqa: N818 (no error: somebody asked for it)
    """The request was cancelled."""


class Workshop:
    """Makes one request at a time, in a thread of its own, which stops between two steps when it is let go."""

    def __init__(self, systems: Systems, controlnet: str | None = None) -> None:
        self.systems, self.controlnet = systems, controlnet
        self._one = threading.Lock()

    def run(self, wanted: Wanted, folder: Path, looks: bool = True) -> Iterator[Look | Film]:
        """The films are written into `folder`. Closing the iterator cancels the work.

        Raises:
            UserError: for what a system cannot do, with nothing of this machine's folders in the words.
        """
        told: SimpleQueue[Look | Film | None] = SimpleQueue()
        stop = threading.Event()

        def tell(news: Look | Film) -> None:
            if stop.is_set():
                raise Stopped
            told.put(news)

        # Not waited for when it is let go: a step of a large model takes long, and nobody may stand still meanwhile.
        pool = ThreadPoolExecutor(1, thread_name_prefix="mcm-demo")
        work = pool.submit(self._make, wanted, folder, looks, tell, stop)
        work.add_done_callback(lambda _: told.put(None))
        pool.shutdown(wait=False)
        try:
            while (news := told.get()) is not None:
                yield news
            work.result()
        finally:
            stop.set()

    def _make(
        self, wanted: Wanted, folder: Path, looks: bool, tell: Callable[[Look | Film], None], stop: threading.Event
    ) -> None:
        with self._one, opened(wanted.pose, wanted.uploads) as (pose, clean):
            try:
                for number, name in enumerate(wanted.systems):
                    if stop.is_set():
                        return
                    tell(self._film(wanted, name, pose, folder / str(number), looks, tell))
            except Stopped:
                return
            except UserError as error:
                raise UserError(self._without_folders(clean(str(error)))) from error
            finally:
                if stop.is_set():
                    shutil.rmtree(folder, ignore_errors=True)

    def _film(
        self, wanted: Wanted, name: str, pose: str | None, folder: Path, looks: bool,
        tell: Callable[[Look | Film], None],
    ) -> Film:  # fmt: skip
        maker = self.systems[name]
        teacher = self.systems.is_teacher(name)
        looking = 0.0

        def watch(step: Step) -> None:
            nonlocal looking
            begin = time.perf_counter()
            frames = maker.glimpse(step.x0) if looks else np.zeros((0, 1, 1, 3), np.uint8)
            tell(Look(name, step.done, step.steps, frames))
            looking += time.perf_counter() - begin

        begin = time.perf_counter()
        (video,) = generate(
            maker,
            wanted.prompt,
            seeds=[wanted.seed],
            steps=wanted.teacher_steps if teacher else wanted.steps,
            guidance_scale=wanted.guidance if teacher else None,
            frames=wanted.frames,
            pose=pose,
            controlnet=None if pose is None else self.controlnet,
            watch=watch,
        )
        seconds = time.perf_counter() - begin - looking
        shown = self._shown(video, name, wanted)
        return Film(name, save_video(shown, folder), save_video(shown, folder, "gif"), seconds, shown.settings)

    def _without_folders(self, words: str) -> str:
        """Models by their names alone."""
        places = {place for maker in self.systems.values() for place in (maker.name, maker.model.name)}
        for place in sorted({*places, self.controlnet or ""} - {""}, key=len, reverse=True):
            words = words.replace(place, Path(place).name)
        return words

    @staticmethod
    def _shown(video: Video, name: str, wanted: Wanted) -> Video:
        """The video with names in its settings where this machine's paths stood."""
        settings = {key: value for key, value in video.settings.items() if key != "controlnet"} | {"model": name}
        if "pose" in settings:
            settings["pose"] = wanted.pose or [upload.name for upload in wanted.uploads]
        return Video(video.prompt, video.seed, video.frames, video.fps, settings)
