"""The page: what to make on the left, students and teachers side by side on the right; a gallery; a run that trains."""

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
from mcm.app.training import training_tab
from mcm.app.wanted import Limits, Wanted, read_wanted
from mcm.app.work import Film, Look, Workshop
from mcm.errors import UserError

_NO_POSE = "none"
_ONE = "making"  # the queue's name for work that must not run twice at a time
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.mcm-look img, .mcm-film video { image-rendering: auto; width: 100%; object-fit: contain; }
.mcm-told { min-height: 3.2em; }
footer { display: none !important; }
"""


@dataclass(frozen=True)
class Offer:
    """What the page is built from. actions: poses by name; examples: prompts; run: a folder to follow, or None."""

    workshop: Workshop
    limits: Limits
    actions: Sequence[str] = ()
    examples: Sequence[str] = ()
    run: Run | None = None


class Page(gr.Blocks):
    """Gradio's page, in which a request that cannot even be read is an answer in words, not a traceback."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if _remote(inputs):  # gradio would fetch it
                raise ValueError("a file from elsewhere")
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise _told("this request cannot be read: expected the page's values and files uploaded to it") from error


def build(offer: Offer, folder: Path) -> Page:
    """The page; folder: where its files lie, uploaded ones included, alone (see `serve`)."""
    limits, systems = offer.limits, offer.workshop.systems
    page = Page(title="mcm", analytics_enabled=False, delete_cache=(min(600, limits.age), limits.age))
    making = Making(offer, folder)
    with page:
        gr.Markdown("# Motion consistency\nStudents of few steps beside their teachers: same prompt, same seed.")
        with gr.Tab("Generate"), gr.Row():
            with gr.Column(scale=1, min_width=300):
                prompt = gr.Textbox(
                    label="Prompt", lines=3, max_length=limits.prompt, elem_id="prompt",
                    value=offer.examples[0] if offer.examples else "",
                )  # fmt: skip
                chosen = gr.CheckboxGroup(
                    list(systems), value=systems.first, label="Side by side", elem_id="systems",
                    info=f"1 to {limits.systems} of them",
                )  # fmt: skip
                steps = gr.Slider(1, limits.steps, value=4, step=1, label="Steps of students", elem_id="steps")
                teacher_steps = gr.Slider(
                    1, limits.teacher_steps, value=25, step=1, label="Steps of teachers", elem_id="teacher-steps"
                )
                with gr.Row():
                    seed = gr.Number(
                        value=0, precision=0, minimum=0, maximum=limits.seed, label="Seed", elem_id="seed",
                        info="same for all", min_width=110,
                    )  # fmt: skip
                    guidance = gr.Number(
                        value=0, minimum=0, maximum=limits.guidance, step=0.5, label="Guidance", elem_id="guidance",
                        info="teachers; 0: own", min_width=110,
                    )  # fmt: skip
                    frames = gr.Number(
                        value=0, precision=0, minimum=0, maximum=limits.frames, label="Frames", elem_id="frames",
                        info="0: own", min_width=110,
                    )  # fmt: skip
                with gr.Accordion("Pose", open=False, elem_id="pose"):
                    pose = gr.Dropdown(
                        [(_NO_POSE, ""), *offer.actions], value="", label="What the person does", elem_id="action"
                    )
                    uploads = gr.File(
                        file_count="multiple", label="or OpenPose keypoints (.json) or skeleton pictures",
                        elem_id="uploads", height=140,
                    )  # fmt: skip
                with gr.Row():
                    make = gr.Button("Generate", variant="primary", elem_id="make")
                    cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
                if offer.examples:
                    gr.Examples([[text] for text in offer.examples], [prompt], label="Examples")
            with gr.Column(scale=2, min_width=320):
                told = gr.Markdown("Nothing made yet.", elem_id="told", elem_classes="mcm-told")
                shown = [number < len(systems.first) for number in range(min(limits.systems, len(systems)))]
                with gr.Row():
                    slots = [_slot(number, visible) for number, visible in enumerate(shown)]
        with gr.Tab("Gallery"):
            gallery = gr.Gallery(
                label=f"This session's last {limits.kept} videos", columns=4, object_fit="contain", elem_id="gallery"
            )
        if offer.run is not None:
            with gr.Tab("Training"):
                training_tab(offer.run)
        kept = gr.State([], time_to_live=limits.age, delete_callback=forget)
        values = [prompt, chosen, steps, teacher_steps, seed, guidance, frames, pose, uploads]
        work = make.click(
            making.side_by_side, [*values, kept], [told, *(part for slot in slots for part in slot), gallery, kept],
            concurrency_limit=1, concurrency_id=_ONE, api_visibility="private", show_progress="hidden",
            preprocess=False,
        )  # fmt: skip
        cancel.click(lambda: "Cancelled.", None, told, cancels=[work], queue=False, api_visibility="private")
        gr.api(making.by_api, api_name="generate", concurrency_limit=1, concurrency_id=_ONE)
        gr.api(making.offered, api_name="systems", queue=False)
    return page


def _slot(number: int, visible: bool) -> tuple[Any, ...]:
    """The parts of one system's place: the column, its words, the look, the film, the files."""
    with gr.Column(min_width=200, visible=visible) as column:
        words = gr.Markdown("", elem_id=f"words-{number}")
        look = gr.Image(
            label="so far", visible=False, interactive=False, elem_id=f"look-{number}", elem_classes="mcm-look",
            buttons=[],
        )  # fmt: skip
        film = gr.Video(
            label="video", autoplay=True, loop=True, interactive=False, elem_id=f"film-{number}",
            elem_classes="mcm-film", height=300, buttons=["download"],
        )  # fmt: skip
        files = gr.File(label="MP4 and GIF", visible=False, interactive=False, elem_id=f"files-{number}")
    return column, words, look, film, files


class Making:
    """What the page's button and its API do: read the request, let the workshop work, show what comes."""

    def __init__(self, offer: Offer, folder: Path) -> None:
        self.offer, self.folder = offer, folder
        self.slots = min(offer.limits.systems, len(offer.workshop.systems))

    def _wanted(self, raw: dict[str, Any]) -> Wanted:
        offer = self.offer
        try:
            return read_wanted(raw, offer.limits, offer.workshop.systems, offer.actions, self.folder)
        except UserError as error:
            raise _told(str(error)) from error

    def side_by_side(
        self, prompt: Any, systems: Any, steps: Any, teacher_steps: Any, seed: Any, guidance: Any, frames: Any,
        pose: Any, uploads: Any, kept: Any,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """The page's outputs after every step: the words above, five parts a slot, the gallery, what it keeps."""
        wanted = self._wanted(
            {
                "prompt": prompt, "systems": systems, "steps": steps, "teacher_steps": teacher_steps, "seed": seed,
                "guidance": guidance or None, "frames": frames or None, "pose": pose, "uploads": uploads,
            }  # a browser's field of numbers is never empty: 0 is the model's own there
        )  # fmt: skip
        kept = [] if kept is None else list(kept)
        yield [f"Making {len(wanted.systems)} video(s) ...", *self._emptied(wanted), gr.skip(), gr.skip()]
        folder = Path(mkdtemp(dir=self.folder, prefix="made-"))
        films: list[Film] = []
        try:
            for news in self.offer.workshop.run(wanted, folder):
                place = wanted.systems.index(news.system)
                if isinstance(news, Look):
                    words = f"{news.system}: step {news.done} of {news.steps}"
                    yield [words, *self._changed(place, _looked(news)), gr.skip(), gr.skip()]
                else:
                    films.append(news)
                    yield [gr.skip(), *self._changed(place, _filmed(news)), gr.skip(), gr.skip()]
        except UserError as error:
            raise _told(str(error)) from error
        finally:
            if len(films) < len(wanted.systems):
                shutil.rmtree(folder, ignore_errors=True)
        kept = [(folder, [(str(film.mp4), f"{film.system}: {wanted.prompt}") for film in films]), *kept]
        kept = self._bounded(kept)
        words = f"Done: seed {wanted.seed}, {wanted.prompt}"
        gallery = [video for _, videos in kept for video in videos]
        yield [html.escape(words), *self._changed(0, None), gallery, kept]

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
        wanted = self._wanted(
            {
                "prompt": prompt, "systems": names, "steps": steps, "teacher_steps": teacher_steps, "seed": seed,
                "guidance": guidance, "frames": frames, "pose": pose, "uploads": uploads,
            }
        )  # fmt: skip
        with TemporaryDirectory(dir=self.folder) as place:
            try:
                news = list(self.offer.workshop.run(wanted, Path(place), looks=False))
            except UserError as error:
                raise _told(str(error)) from error
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
                gr.update(value=None, visible=False), None, gr.update(value=None, visible=False),
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
    strip = np.concatenate(list(look.frames), axis=1)
    return [gr.skip(), words, gr.update(value=strip, visible=True), gr.skip(), gr.skip()]


def _filmed(film: Film) -> list[Any]:
    steps = film.settings["steps"]
    words = f"**{html.escape(film.system)}** {steps} step{'s' * (steps != 1)}, {film.seconds:.2f} s"
    files = gr.update(value=[str(film.mp4), str(film.gif)], visible=True)
    return [gr.skip(), words, gr.update(value=None, visible=False), str(film.mp4), files]


def _remote(value: Any) -> bool:
    """Whether anything inside is a file of another machine."""
    if isinstance(value, dict):
        path = value.get("path")
        return (isinstance(path, str) and "://" in path) or any(map(_remote, value.values()))
    return isinstance(value, list) and any(map(_remote, value))


def _told(words: str) -> gr.Error:
    """An error for the page: words as they are, and nothing on the server's own screen."""
    return gr.Error(html.escape(words, quote=False), print_exception=False)
