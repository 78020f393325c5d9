"""Scores on the laboratory's prompts: the one protocol that everything measured of the pocket models goes by.

Reported figures are on the held-out prompts (split "reference"); whatever is tuned is tuned on other prompts, other
real clips and other seeds (split "pictures", which broadcast clips of no training show).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcm.evaluation.bootstrap import share_interval
from mcm.evaluation.clipsim import ClipScorer
from mcm.evaluation.evaluator import METRICS, Evaluator
from mcm.evaluation.fid import fid, picture_features
from mcm.evaluation.frechet import FrechetStatistics
from mcm.evaluation.fvd import VideoFeatures, frame_index
from mcm.evaluation.networks import resize
from mcm.evaluation.report import Row
from mcm.evaluation.run import made, motion_of
from mcm.generate import TEACHER_STEPS, Maker, load_maker
from mcm.models.fingerprint import fingerprint
from mcm.output import Progress, silent, whole
from mcm.pocket import world, zoo
from mcm.pocket.judge import Judge, verdict
from mcm.pocket.sources import PocketPictures

HELD_OUT, TUNING = ("reference", 5000), ("pictures", 700_000)  # (split, first seed)


class Scoring:
    """Prompts, the real clips and pictures that samples are compared with, and the judges; loaded once.

    count: clips a row; of real clips there are `real`, of the same prompts first, and of the pictures of each style as
    many. frames, size: of the clips.
    """

    def __init__(
        self,
        count: int,
        real: int = 1024,
        tuning: bool = False,
        styles: Iterable[str] = world.STYLES,
        batch: int = 16,
        kept: Path | None = None,
    ) -> None:
        """kept: folder for what is of all rows (real clips' features, the teachers' motion) between processes."""
        split, self.seed = TUNING if tuning else HELD_OUT
        self.specs = [world.spec(split, i) for i in range(count)]
        self.prompts = [s.caption for s in self.specs]
        self.batch, self._kept_in = batch, kept
        self.judge = Judge.load(zoo.judge_file())
        video, scorer, total = VideoFeatures(zoo.VIDEO_FEATURES), ClipScorer(zoo.CLIP), max(count, real)

        def film(i: int) -> Tensor:
            return world.film([world.spec(split, i)], "broadcast").video

        # What is kept is told by the network that saw it, and by the first of what it saw.
        name = f"{split}-{total}-{video.sha256[:12]}-{_mark(film(0))}"
        clips = self._kept(name, lambda: video.collect(film(i) for i in range(total)))
        self.styles: dict[str, FrechetStatistics] = {}
        for style in dict.fromkeys(("studio", *styles)):
            pictures = PocketPictures(style, (64, 64), total, split)
            name = f"{style}-{split}-{total}-{scorer.sha256[:12]}-{scorer.half}-{_mark(pictures[0].image)}"
            seen = self._kept(name, lambda shown=pictures: picture_features(scorer, (one.image for one in shown)))
            self.styles[style] = FrechetStatistics.from_features(seen, f"{style} pictures")
        real_clips = FrechetStatistics.from_features(clips, "reference videos")
        self.evaluator = Evaluator(METRICS, real_clips, video, scorer, self.styles["studio"])

    def _kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What is kept under a name between processes; made where it is not."""
        if self._kept_in is None:
            return make()
        file = self._kept_in / f"{name}.npy"
        if file.exists():
            return np.load(file)
        made = make()
        with whole(file) as partial:
            np.save(partial, made)
        return made

    def motion(self, maker: Maker, shape: tuple[int, tuple[int, int]], known: np.ndarray | None = None) -> np.ndarray:
        """The motion of the clips that the teacher makes of these prompts and seeds, (count,).

        known: it, where those clips have just been made.
        """
        name, mark = maker.name, ""
        if maker.card is not None:
            name, mark = maker.card.teacher.name, maker.card.teacher.fingerprint
        mark = mark or fingerprint(maker.model.denoiser.network)
        size = f"{shape[0]}x{shape[1][0]}x{shape[1][1]}"

        def made() -> np.ndarray:
            if known is not None:
                return known
            return motion_of(load_maker(name), self.prompts, self.seed, self.batch, silent, *shape)

        return self._kept(f"{Path(name).name}-{mark[:12]}-{size}-{self.seed}-{len(self.prompts)}", made)

    def row(
        self,
        maker: Maker,
        method: str,
        steps: int,
        sampler: str | None = None,
        guidance: float | None = None,
        style: str = "studio",
        shape: tuple[int, tuple[int, int]] | None = None,
        progress: Progress = silent,
        **kept: Any,
    ) -> Row:
        """Make a clip for every prompt and score them.

        style: whose pictures the row's `fid` compares with (`fids` has them all). shape: frames and size (H, W),
        default the model's own; the judge sees clips brought to its own. kept: further fields of the row.
        """
        teacher = Path(maker.card.teacher.name if maker.card else maker.name).name
        shape = shape or (maker.frames, maker.size)
        self.evaluator.reset()
        self.evaluator.pictures = self.styles[style]
        videos, begun = [], time.monotonic()
        for clips, texts in made(
            maker, self.prompts, self.seed, steps, sampler, guidance, self.batch, progress, f"{method}, {steps} steps",
            *shape,
        ):  # fmt: skip
            videos.append(_as_judged(clips))
            self.evaluator.add(clips, texts)
        seconds = (time.monotonic() - begun) / len(self.prompts)
        right = verdict(self.judge, torch.cat(videos), self.specs)
        frames = self.evaluator.values("fid")
        own = maker.card is None and maker.guidance(guidance) == maker.guidance()
        own = own and (maker.sampler(sampler).name, steps) == ("dpm++", TEACHER_STEPS)
        motion = self.motion(maker, shape, self.evaluator.values("motion") if own else None)
        row = self.evaluator.row(
            teacher=teacher, method=method, sampler=maker.sampler(sampler).name, steps=steps,
            guidance=maker.guidance(guidance), teacher_motion=motion, seconds=seconds,
            action_accuracy=float(right["action"].mean()), scene_accuracy=float(right["scene"].mean()),
            colour_accuracy=float(right["colours"].mean()),
            fids={name: round(fid(frames, pictures), 4) for name, pictures in self.styles.items()}, **kept,
        )  # fmt: skip
        return replace(row, intervals={**row.intervals, **_of_shares(row)})


def _of_shares(row: Row) -> dict[str, list[float]]:
    shares = {name: getattr(row, name) for name in ("action_accuracy", "scene_accuracy", "colour_accuracy")}
    return {name: list(share_interval(share, row.n)) for name, share in shares.items() if share is not None}


def _mark(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:12]


def _as_judged(clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) at the judge's 8 frames of 64 x 64."""
    clips = clips[:, :, frame_index(clips.shape[2], 8)]
    if clips.shape[-2:] == (64, 64):
        return clips
    frames = resize(clips.transpose(1, 2).flatten(0, 1), (64, 64), "bilinear")
    return frames.unflatten(0, (len(clips), -1)).transpose(1, 2)


def line(row: Row) -> str:
    """A row for the screen."""
    ratio = "-" if row.motion_ratio is None else f"{row.motion_ratio:.2f}"
    return (
        f"{row.teacher} {row.method} {row.steps} steps, guidance {row.guidance:g}: FVD {row.fvd:.2f}  "
        f"FID {row.fid:.3f}  CLIPSIM {row.clipsim:.1f}  motion {ratio}  action {row.action_accuracy:.3f}  "
        f"scene {row.scene_accuracy:.3f}  colours {row.colour_accuracy:.3f}  {row.seconds:.2f} s a clip"
    )
