"""The whole of an evaluation: make videos with a student or a teacher at several step counts and score them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcm.data.open import open_pictures, open_videos
from mcm.data.sources import Clip, Prompts
from mcm.errors import UserError
from mcm.evaluation.evaluator import Evaluator, checked_metrics
from mcm.evaluation.i3d import load_features
from mcm.evaluation.report import Report, Row, provenance
from mcm.evaluation.wall import Wall
from mcm.generate import TEACHER_STEPS, Maker, load_maker
from mcm.models.video import load_video_model
from mcm.output import Progress, silent

# The judges: a folder, a zoo name or a hub id. The pocket ones judge pocket models, the published ones the rest.
REAL_JUDGES = ("MCG-NJU/videomae-base-finetuned-kinetics", "openai/clip-vit-base-patch32")


def evaluate(
    model: str | Path | Maker,
    reference: str,
    *,
    steps: Sequence[int] = (1, 2, 4, 8),
    metrics: Sequence[str] = ("fvd", "clipsim", "motion"),
    images: str | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    count: int = 256,
    sampler: str | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch: int = 8,
    fvd_model: str | Path | None = None,
    clip: str | Path | None = None,
    fvd_sha256: str | None = None,
    wall: Wall | None = None,
    progress: Progress = silent,
) -> Report:
    """Score a model against real videos.

    Args:
        model: a student's or a teacher's name or folder.
        reference: real videos: a folder or table, or "pocket:broadcast" (held-out clips).
        steps: one row for each.
        metrics: "fvd", "clipsim", "fid" (needs `images`), "motion" (student / teacher with `TEACHER_STEPS` DPM++ steps,
            same prompts and seeds; for a teacher: itself at its usual steps).
        prompts: a file or a list; default the reference's own captions, in its order.
        fvd_model: VideoMAE for the FVD, a folder, zoo name or hub id; or the TorchScript file of I3D, which is run as
            the program that it is, if its SHA-256 is the known one or `fvd_sha256`.
        clip: CLIP for CLIPSIM and FID, likewise. Default of both: the pocket networks for pocket models, else the
            published ones.
        count: clips a row; prompts are gone through in turn, seeds count on from `seed`.
        wall: is handed the clips as they are made, those of a student's teacher too, to keep a few of each row.

    Raises:
        UserError: for anything that is missing or does not fit.
    """
    metrics = checked_metrics(metrics)  # what can be known to be wrong is said before anything is loaded
    if "fid" in metrics and images is None:
        raise UserError("metric 'fid' needs pictures to compare the frames with: give images or leave the metric out")
    maker = model if isinstance(model, Maker) else load_maker(model)
    pocket = str(maker.card.teacher.name if maker.card else maker.name).startswith("pocket-")
    fvd_model = fvd_model or ("pocket-videomae" if pocket else REAL_JUDGES[0])
    clip = clip or ("pocket-clip" if pocket else REAL_JUDGES[1])
    for number in steps:
        maker.sampler(sampler).times(maker.model.path, number)
    features = load_features(fvd_model, sha256=fvd_sha256) if "fvd" in metrics else None  # before films are read

    real = _reference(reference, maker, count, progress)
    said = [c.caption for c in real] if prompts is None else list(Prompts(prompts))
    said = [said[i % len(said)] for i in range(count)]
    pictures = None
    if images is not None:
        source = open_pictures(images, maker.size, progress)
        pictures = (torch.stack([source[i].image for i in range(start, min(start + 64, len(source)))])
                    for start in range(0, len(source), 64))  # fmt: skip
    evaluator = Evaluator(
        metrics, (c.video for c in real) if features is not None else None, features, clip, pictures, seed=seed
    )  # fmt: skip
    teacher_name = maker.name if maker.card is None else maker.card.teacher.name
    teacher_motion = None
    if "motion" in metrics:
        teacher = maker if maker.card is None else Maker(load_video_model(teacher_name), teacher_name)
        # A pair is of the same noise, so the teacher takes the student's shape.
        own = None if maker.card is None else wall  # a teacher's clips are those of its rows
        teacher_motion = motion_of(teacher, said, seed, batch, progress, maker.frames, maker.size, own)
    method = maker.card.method if maker.card else maker.sampler(sampler).name
    rows: list[Row] = []
    for number in steps:
        evaluator.reset()
        begun = time.monotonic()
        what = f"{number} steps"
        for videos, texts in made(maker, said, seed, number, sampler, guidance_scale, batch, progress, what):
            evaluator.add(videos, texts)
            if wall is not None:
                begun += wall.add(videos, texts, seed, maker.fps, teacher_name, method, number)
        rows.append(
            evaluator.row(
                teacher=teacher_name, method=method,
                sampler=maker.sampler(sampler).name, steps=number, guidance=maker.guidance(guidance_scale),
                teacher_motion=teacher_motion, seconds=(time.monotonic() - begun) / count,
            )
        )  # fmt: skip
    return Report(rows, provenance(evaluator.protocol()))


def motion_of(
    teacher: Maker, prompts: Sequence[str], seed: int, batch: int, progress: Progress = silent,
    frames: int | None = None, size: tuple[int, int] | None = None, wall: Wall | None = None,
) -> np.ndarray:  # fmt: skip
    """What a student's motion is compared with: that of its teacher's clips in `TEACHER_STEPS` DPM++ steps, (n,).

    wall: is handed those clips.
    """
    alone = Evaluator(("motion",), seed=seed)
    for videos, texts in made(
        teacher, prompts, seed, TEACHER_STEPS, "dpm++", None, batch, progress, "teacher", frames, size
    ):
        alone.add(videos, texts)
        if wall is not None:
            wall.add(videos, texts, seed, teacher.fps, teacher.name, "dpm++", TEACHER_STEPS)
    return np.asarray(alone.values("motion"))


def made(
    maker: Maker, prompts: Sequence[str], seed: int, steps: int, sampler: str | None, guidance: float | None,
    batch: int, progress: Progress = silent, what: str = "videos", frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[Tensor, list[str]]]:  # fmt: skip
    """Batches of videos (B, 3, T, H, W) with their prompts; video i has the seed `seed + i`.

    frames, size: of the videos; default the model's own.
    """
    for start in range(0, len(prompts), batch):
        texts = list(prompts[start : start + batch])
        seeds = [seed + start + i for i in range(len(texts))]
        yield maker.decode(maker.latents(texts, seeds, steps, sampler, guidance, frames, size)).cpu(), texts
        progress(what, start + len(texts), len(prompts))


def _reference(place: str, maker: Maker, count: int, progress: Progress) -> list[Clip]:
    """Real clips to compare with, at the model's own frames and size: all of a folder, `count` of the laboratory's."""
    return list(open_videos(place, maker.frames, maker.size, count, progress=progress, split="reference"))
