"""What the page's buttons and its API do: read a request, let the workshop work, show what comes."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import gradio as gr
import numpy as np

from mcm.app.following import Run
from mcm.app.posing import drawn
from mcm.app.wanted import Limits, Wanted, read_pose, read_wanted
from mcm.app.work import Film, Look, Workshop
from mcm.errors import UserError

POSE_WORDS = (
    "Keypoints as OpenPose writes them (.json), or pictures of skeletons. For AnimateDiff teachers and their students."
)


@dataclass(frozen=True)
class Offer:
    """What the page is built from. actions: poses by name; examples: prompts; run: a folder to follow, or None."""

    workshop: Workshop
    limits: Limits
    actions: Sequence[str] = ()
    examples: Sequence[str] = ()
    run: Run | None = None


class Making:
    """What the page's button and its API do: read the request, let the workshop work, show what comes."""

    def __init__(self, offer: Offer, folder: Path) -> None:
        self.offer, self.folder = offer, folder
        self.slots = min(offer.limits.systems, len(offer.workshop.systems))

    def _wanted(self, raw: dict[str, Any]) -> Wanted:
        offer = self.offer
        return read_wanted(raw, offer.limits, offer.workshop.systems, offer.actions, self.folder)

    def side_by_side(
        self, prompt: Any, systems: Any, steps: Any, teacher_steps: Any, seed: Any, guidance: Any, frames: Any,
        pose: Any, uploads: Any, kept: Any,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """The page's outputs after every step: the words above, five parts a slot, the gallery, what it keeps.

        What cannot be made is told twice: above the videos, where it stays, and in a note that goes.
        """
        raw = {
            "prompt": prompt, "systems": systems, "steps": steps, "teacher_steps": teacher_steps, "seed": seed,
            "guidance": guidance or None, "frames": frames or None, "pose": pose, "uploads": uploads,
        }  # fmt: skip
        try:
            yield from self._made(raw, [] if kept is None else list(kept))
        except UserError as error:
            words = html.escape(str(error), quote=False)
            yield [f"**Not made.** {words}", *self._changed(0, None), gr.skip(), gr.skip()]
            raise refusal(str(error)) from error

    def _made(self, raw: dict[str, Any], kept: list[Any]) -> Iterator[list[Any]]:
        wanted = self._wanted(raw)  # a browser's field of numbers is never empty: 0 is the model's own there
        count = len(wanted.systems)
        yield [f"Making {count} video{'s' * (count > 1)} ...", *self._emptied(wanted), gr.skip(), gr.skip()]
        folder = Path(mkdtemp(dir=self.folder, prefix="made-"))
        films: list[Film] = []
        try:
            for news in self.offer.workshop.run(wanted, folder):
                place = wanted.systems.index(news.system)
                if isinstance(news, Look):
                    words = f"{news.system}: step {news.done} of {news.steps}"
                    yield [html.escape(words), *self._changed(place, _looked(news)), gr.skip(), gr.skip()]
                else:
                    films.append(news)
                    yield [gr.skip(), *self._changed(place, _filmed(news)), gr.skip(), gr.skip()]
        finally:
            if len(films) < count:
                shutil.rmtree(folder, ignore_errors=True)
        kept = [(folder, [(str(film.mp4), f"{film.system}: {wanted.prompt}") for film in films]), *kept]
        kept = self._bounded(kept)
        words = f"Done: seed {wanted.seed}, {wanted.prompt}"
        gallery = [video for _, videos in kept for video in videos]
        yield [html.escape(words), *self._changed(0, None), gallery, kept]

    def posed(self, pose: Any, uploads: Any) -> str:
        """The chosen pose to look at, or what is wrong with it: HTML."""
        offer = self.offer
        try:
            raw = {"pose": pose, "uploads": uploads}
            return drawn(*read_pose(raw, offer.limits, offer.actions, self.folder)) or POSE_WORDS
        except UserError as error:
            return html.escape(str(error))

    def by_api(
        self, prompt: str, systems: list[str] | None = None, steps: int = 4, teacher_steps: int = 25, seed: int = 0,
        guidance: float | None = None, frames: int | None = None, pose: str | None = None,
        uploads: list[gr.FileData] | None = None,
    ) -> tuple[list[gr.FileData], list[dict]]:  # fmt: skip
        """Make a video with each system, same prompt and seed: the MP4 files, and for each what made it.

        systems: names, by default those chosen on the page (`/systems` lists all). guidance and frames: by default a
        model's own. pose: an action's name; uploads: files for a pose instead.
        """
        names = list(self.offer.workshop.systems.first) if systems is None else systems
        raw = {
            "prompt": prompt, "systems": names, "steps": steps, "teacher_steps": teacher_steps, "seed": seed,
            "guidance": guidance, "frames": frames, "pose": pose, "uploads": uploads,
        }  # fmt: skip
        with TemporaryDirectory(dir=self.folder) as place:
            try:
                news = list(self.offer.workshop.run(self._wanted(raw), Path(place), looks=False))
            except UserError as error:
                raise refusal(str(error)) from error
            films = [film for film in news if isinstance(film, Film)]
            files = [self._moved(film.mp4) for film in films]
        told = [
            {"system": film.system, "seconds": round(film.seconds, 3), **json.loads(json.dumps(film.settings))}
            for film in films
        ]
        return files, told

    def offered(self) -> list[str]:
        """The names of the systems, students first."""
        return list(self.offer.workshop.systems)

    def _moved(self, path: Path) -> Any:
        """The file in a place that outlives the request, as gradio names files."""
        kept = Path(mkdtemp(dir=self.folder, prefix="api-")) / path.name
        shutil.move(path, kept)
        return {"path": str(kept), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def _emptied(self, wanted: Wanted) -> list[Any]:
        parts: list[Any] = []
        for number in range(self.slots):
            name = wanted.systems[number] if number < len(wanted.systems) else None
            parts += [
                gr.update(visible=name is not None), f"**{html.escape(name)}**" if name else "",
                gr.update(value=None, visible=False), gr.update(value=None, visible=True),
                gr.update(value=None, visible=False),
            ]  # fmt: skip
        return parts

    def _changed(self, place: int, parts: list[Any] | None) -> list[Any]:
        """Every slot as it is, but one."""
        found: list[Any] = []
        for number in range(self.slots):
            found += parts if parts is not None and number == place else [gr.skip()] * 5
        return found

    def _bounded(self, kept: list[Any]) -> list[Any]:
        """The newest requests whose videos fit into the gallery; the files of others are removed."""
        count, fitting = 0, 0
        for _, videos in kept:
            count += len(videos)
            if count > self.offer.limits.kept:
                break
            fitting += 1
        forget(kept[fitting:])
        return kept[:fitting]


def forget(kept: list[Any] | None) -> None:
    """Removes the files of requests that no gallery shows any more.

    (A function: gradio copies what a component holds, and a method would bring all models with it.)
    """
    for folder, _ in kept or []:
        shutil.rmtree(folder, ignore_errors=True)


def _looked(look: Look) -> list[Any]:
    words = f"**{html.escape(look.system)}** step {look.done} of {look.steps}"
    return [gr.skip(), words, gr.update(value=_tiled(look.frames), visible=True), gr.update(visible=False), gr.skip()]


def _tiled(frames: np.ndarray) -> np.ndarray:
    """Frames (N, H, W, 3) in two rows, one where they are no even number; (2H, N/2 W, 3)."""
    rows = np.split(frames, 2) if len(frames) % 2 == 0 else [frames]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def _filmed(film: Film) -> list[Any]:
    steps = film.settings["steps"]
    words = f"**{html.escape(film.system)}** {steps} step{'s' * (steps != 1)}, {film.seconds:.2f} s"
    files = gr.update(value=[str(film.mp4), str(film.gif)], visible=True)
    shown = gr.update(value=str(film.mp4), visible=True)
    return [gr.skip(), words, gr.update(value=None, visible=False), shown, files]


def refusal(words: str) -> gr.Error:
    """An error for the page: words as they are, and nothing on the server's own screen."""
    return gr.Error(html.escape(words, quote=False), print_exception=False)
