"""The page: what to make on the left, students and teachers side by side on the right; a gallery; a run that trains."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from mcm.app.making import POSE_WORDS, Making, Offer, forget, refusal
from mcm.app.training import training_tab

_NO_POSE = "none"
_ONE = "making"  # the queue's name for work that must not run twice at a time
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.mcm-look img, .mcm-film video { width: 100% !important; height: 100% !important; object-fit: contain !important; }
.mcm-told { min-height: 1.6em; }
.mcm-turn { min-height: 2em; position: relative; }
.mcm-turn .wrap { overflow: visible; padding: 0; background: none; }
.mcm-turn .progress-text { transform: none !important; left: 0; right: auto !important; white-space: nowrap; }
.mcm-turn .error, .mcm-turn .clear-status { display: none; }
.mcm-pose img { margin: auto; border-radius: 4px; }
footer { display: none !important; }
"""


class Page(gr.Blocks):
    """Gradio's page, in which a request that cannot even be read is an answer in words, not a traceback."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if _remote(inputs):  # gradio would fetch it
                raise ValueError("a file from elsewhere")
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise refusal("this request cannot be read: expected the page's values and files uploaded to it") from error


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
                        [(_NO_POSE, ""), *offer.actions], value="", label="What the puppet does", elem_id="action"
                    )
                    uploads = gr.File(file_count="multiple", label="or files", elem_id="uploads", height=140)
                    look = gr.HTML(POSE_WORDS, elem_id="pose-look", elem_classes="mcm-pose")
                with gr.Row():
                    make = gr.Button("Generate", variant="primary", elem_id="make")
                    cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
                if offer.examples:
                    gr.Examples([[text] for text in offer.examples], [prompt], label="Examples")
            with gr.Column(scale=2, min_width=320):
                told = gr.Markdown("Nothing made yet.", elem_id="told", elem_classes="mcm-told")
                turn = gr.HTML("", elem_id="turn", elem_classes="mcm-turn")  # where the queue says how long it is
                with gr.Row():
                    slots = [_slot(number, systems.first[number : number + 1]) for number in range(making.slots)]
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
            concurrency_limit=1, concurrency_id=_ONE, api_visibility="private", show_progress="minimal",
            show_progress_on=turn, preprocess=False,
        )  # fmt: skip
        cancel.click(lambda: "Cancelled.", None, told, cancels=[work], queue=False, api_visibility="private")
        for part in (pose, uploads):
            part.change(
                making.posed, [pose, uploads], look, concurrency_limit=1, concurrency_id="posing", preprocess=False,
                api_visibility="private", show_progress="hidden",
            )  # fmt: skip
        gr.api(making.by_api, api_name="generate", concurrency_limit=1, concurrency_id=_ONE)
        gr.api(making.offered, api_name="systems", queue=False)
    return page


def _slot(number: int, name: list[str]) -> tuple[Any, ...]:
    """The parts of a system's place: the column, its words, the look, the film, the files. name: [] for a free one."""
    with gr.Column(min_width=200, visible=bool(name)) as column:
        words = gr.Markdown("".join(f"**{html.escape(one)}**" for one in name), elem_id=f"words-{number}")
        look = gr.Image(
            label="so far", visible=False, interactive=False, elem_id=f"look-{number}", elem_classes="mcm-look",
            height=300, buttons=[],
        )  # fmt: skip
        film = gr.Video(
            label="video", autoplay=True, loop=True, interactive=False, elem_id=f"film-{number}",
            elem_classes="mcm-film", height=300, buttons=["download"],
        )  # fmt: skip
        files = gr.File(label="MP4 and GIF", visible=False, interactive=False, elem_id=f"files-{number}")
    return column, words, look, film, files


def _remote(value: Any) -> bool:
    """Whether anything inside is a file of another machine."""
    if isinstance(value, dict):
        path = value.get("path")
        return (isinstance(path, str) and "://" in path) or any(map(_remote, value.values()))
    return isinstance(value, list) and any(map(_remote, value))
