"""The training tab: a run's curves and previews, looked at every few seconds."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from mcm.app.following import MOTION, Progress, Run

_EVERY = 3.0  # seconds
_PLOTS = 6  # losses that are drawn, at most; no method has more


def training_tab(run: Run) -> None:
    """Inside a gr.Tab: follows `run` as long as somebody looks. Every loss has a plot, for their scales differ."""
    told = gr.Markdown("", elem_id="training-told")
    with gr.Row(elem_id="losses"):
        losses = [
            gr.LinePlot(
                x="update", y="loss", height=200, min_width=260, x_axis_format="~g", y_axis_format="~g", buttons=[],
                visible=False,
            )
            for _ in range(_PLOTS)
        ]
    motion = gr.LinePlot(
        x="update", y=MOTION, color="of", title="Motion ratio (1 is the teacher's)", height=220, elem_id="motion",
        x_axis_format="~g", y_axis_format="~g", buttons=[], visible=False,
    )  # fmt: skip
    previews = gr.Gallery(
        label="Previews, the newest first: teacher and student of the same seeds", columns=2, object_fit="contain",
        elem_id="previews",
    )  # fmt: skip
    seen = gr.State("")

    def look(mark: str) -> list[Any]:
        progress = run.progress()
        if progress.mark == mark:
            return [gr.skip()] * len(outputs)
        return [_words(run, progress), *_losses(progress), _motion(progress), _sheets(progress), progress.mark]

    outputs = [told, *losses, motion, previews, seen]
    timer = gr.Timer(_EVERY)
    timer.tick(look, seen, outputs, queue=False, show_progress="hidden", api_visibility="private")


def _words(run: Run, progress: Progress) -> str:
    if not progress.update:
        return f"**{html.escape(run.folder.name)}** has no updates yet."
    last = ", ".join(f"{name} {points[-1][1]:.4f}" for name, points in progress.losses.items())
    ratio = f", motion ratio {progress.motion[-1][1]:.2f}" if progress.motion else ""
    lines = [f"**{html.escape(run.folder.name)}**: update {progress.update}: {html.escape(last)}{ratio}"]
    lines += [f"- **Warning** at {html.escape(words)}" for words in progress.warnings[-5:]]
    return "\n".join(lines)


def _losses(progress: Progress) -> list[Any]:
    shown = [
        gr.update(value=_table(points, "loss"), title=name, visible=True)
        for name, points in list(progress.losses.items())[:_PLOTS]
    ]
    return [*shown, *[gr.update(visible=False)] * (_PLOTS - len(shown))]


def _motion(progress: Progress) -> Any:
    """The ratio at the previews, beside 1. The first is a dash, for a line of one point cannot be seen."""
    if not progress.motion:
        return gr.update(visible=False)
    (first, ratio), end = progress.motion[0], max(progress.update, 1)
    points = [(max(0.0, first - 0.02 * end), ratio), *progress.motion]
    student, teacher = _table(points, MOTION), _table([(0, 1.0), (end, 1.0)], MOTION)
    both = pd.concat([student.assign(of="student"), teacher.assign(of="teacher")])
    return gr.update(value=both, visible=True)


def _table(points: Sequence[tuple[float, float]], name: str) -> pd.DataFrame:
    return pd.DataFrame(points, columns=pd.Index(["update", name]))


def _sheets(progress: Progress) -> list[tuple[Image.Image, str]]:
    """Pictures, not paths: the run's folder is no place that the page serves files from."""
    found = []
    for path in progress.previews:
        with Image.open(path, formats=["PNG"]) as sheet:
            found.append((sheet.convert("RGB"), f"update {int(path.stem.removeprefix('update-'))}"))
    return found
