"""The training tab: a run's curves and previews, looked at every few seconds."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from mcm.app.following import MOTION, Progress, Run

_EVERY = 3.0  # seconds


def training_tab(run: Run) -> None:
    """Inside a gr.Tab: follows `run` as long as somebody looks."""
    told = gr.Markdown("", elem_id="training-told")
    with gr.Row():
        losses = gr.LinePlot(
            x="update", y="value", color="loss", title="Losses", height=280, elem_id="losses", buttons=[]
        )
        motion = gr.LinePlot(
            x="update", y=MOTION, title="Motion ratio (1 is the teacher's)", height=280, elem_id="motion", buttons=[]
        )
    previews = gr.Gallery(label="Previews, the newest first", columns=2, object_fit="contain", elem_id="previews")
    seen = gr.State("")

    def look(mark: str) -> list[Any]:
        progress = run.progress()
        if progress.mark == mark:
            return [gr.skip()] * 5
        return [_words(run, progress), _losses(progress), _motion(progress), _sheets(progress), progress.mark]

    outputs = [told, losses, motion, previews, seen]
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


def _losses(progress: Progress) -> pd.DataFrame:
    rows = [(update, value, name) for name, points in progress.losses.items() for update, value in points]
    return pd.DataFrame(rows, columns=pd.Index(["update", "value", "loss"]))


def _motion(progress: Progress) -> pd.DataFrame:
    return pd.DataFrame(progress.motion, columns=pd.Index(["update", MOTION]))


def _sheets(progress: Progress) -> list[tuple[Image.Image, str]]:
    """Pictures, not paths: the run's folder is no place that the page serves files from."""
    found = []
    for path in progress.previews:
        with Image.open(path, formats=["PNG"]) as sheet:
            found.append((sheet.convert("RGB"), f"update {int(path.stem.removeprefix('update-'))}"))
    return found
