"""Streams generated clips through the chosen metrics and turns them into one row of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcm.errors import UserError, one_of
from mcm.evaluation import motion as motion_module
from mcm.evaluation.bootstrap import Interval, frechet_interval, mean_interval
from mcm.evaluation.clipsim import ClipScorer, clip_similarity
from mcm.evaluation.fid import fid, judged_frames, picture_features
from mcm.evaluation.frechet import Array, FrechetStatistics
from mcm.evaluation.fvd import ClipFeatures, fvd
from mcm.evaluation.i3d import load_features
from mcm.evaluation.networks import checked_videos
from mcm.evaluation.report import Row

METRICS = ("fvd", "clipsim", "fid", "motion")


def checked_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """Each once, in order. UserError for an unknown metric (the nearest is named), or none at all."""
    for metric in metrics:
        if metric not in METRICS:
            raise one_of("metric", metric, METRICS)
    if not metrics:
        raise UserError(f"no metric to measure: expected at least one of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))


class Evaluator:
    """Measures generated clips as they come; holds their features and per-clip numbers, never the clips.

    metrics: any of "fvd", "clipsim", "fid", "motion".
    reference: for fvd, real clips as a stream of (3, T, H, W) or (B, 3, T, H, W) in [-1, 1], read once, here;
        or their statistics.
    fvd_model: for fvd, VideoMAE folder, hub id, file of the TorchScript I3D, or loaded `ClipFeatures`.
    clip: for clipsim and fid, CLIP folder, hub id or loaded `ClipScorer`.
    pictures: for fid, a stream of (3, H, W) or (N, 3, H, W) in [-1, 1], or their statistics.
    frames_per_clip: frames of each clip that the fid judges.
    samples, frechet_samples: resamples behind the intervals of the means and of the Frechet distances.

    One evaluator serves many rows: `reset()` between them keeps networks and references.
    UserError for an unknown metric (the nearest is named) or one whose network or reference is not given.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("fvd", "clipsim", "motion"),
        reference: Iterable[Tensor] | FrechetStatistics | None = None,
        fvd_model: str | Path | ClipFeatures | None = None,
        clip: str | Path | ClipScorer | None = None,
        pictures: Iterable[Tensor] | FrechetStatistics | None = None,
        *,
        frames_per_clip: int = 2,
        samples: int = 1000,
        frechet_samples: int = 100,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        self.metrics = checked_metrics(metrics)
        self.frames_per_clip, self.seed = frames_per_clip, seed
        self.samples, self.frechet_samples = samples, frechet_samples
        judged_frames(1, frames_per_clip)  # refuses a bad number before the networks are loaded

        # Everything asked for is checked before anything slow begins.
        if "fvd" in metrics and (fvd_model is None or reference is None):
            lacking = "a video network (fvd_model)" if fvd_model is None else "real clips (reference)"
            raise UserError(f"metric 'fvd' needs {lacking}: give it or leave the metric out")
        if {"clipsim", "fid"} & set(metrics) and clip is None:
            raise UserError(
                "metrics 'clipsim' and 'fid' need a CLIP folder (clip): give it or leave them out"
            )
        if "fid" in metrics and pictures is None:
            raise UserError(
                "metric 'fid' needs pictures to compare the frames with: give them or leave the metric out"
            )

        self.video_features: ClipFeatures | None = None
        self.scorer: ClipScorer | None = None
        self.reference: FrechetStatistics | None = None
        self.pictures: FrechetStatistics | None = None
        if "fvd" in metrics and fvd_model is not None and reference is not None:
            loaded = fvd_model if isinstance(fvd_model, ClipFeatures) else load_features(fvd_model, device)
            self.video_features = loaded
            if not isinstance(reference, FrechetStatistics):
                reference = FrechetStatistics.from_features(loaded.collect(reference), "reference videos")
            self.reference = reference
        if {"clipsim", "fid"} & set(metrics) and clip is not None:
            self.scorer = clip if isinstance(clip, ClipScorer) else ClipScorer(clip, device)
        if "fid" in metrics and self.scorer is not None and pictures is not None:
            if not isinstance(pictures, FrechetStatistics):
                pictures = FrechetStatistics.from_features(
                    picture_features(self.scorer, pictures), "pictures"
                )
            self.pictures = pictures
        self.reset()

    def reset(self) -> None:
        """Forgets the clips added so far."""
        self.n, self.frames = 0, 0
        self._parts: dict[str, list[Array]] = {}

    def add(self, videos: Tensor, prompts: Sequence[str]) -> None:
        """Takes in generated clips (B, 3, T, H, W) in [-1, 1] and their B prompts.

        UserError for NaN, unequal numbers, or another T than before."""
        videos = checked_videos(videos, "generated videos")
        if len(videos) != len(prompts):
            raise UserError(
                f"{len(videos)} generated videos and {len(prompts)} prompts: expected one for each video"
            )
        if self.n and videos.shape[2] != self.frames:
            raise UserError(
                f"generated videos of {self.frames} and {videos.shape[2]} frames: expected one length"
            )
        self.frames = videos.shape[2]
        found: dict[str, Array] = {}
        if self.video_features is not None:
            found["fvd"] = self.video_features(videos)
        if self.scorer is not None:
            # The CLIPSIM reads every frame; the FID takes its few from the same pass.
            judged = judged_frames(videos.shape[2], self.frames_per_clip)
            wanted = list(range(videos.shape[2])) if "clipsim" in self.metrics else judged
            frames = videos[:, :, wanted].transpose(1, 2).flatten(0, 1)
            images, looks = (part.unflatten(0, (len(videos), -1)) for part in self.scorer.seen(frames))
            if "clipsim" in self.metrics:
                found["clipsim"] = clip_similarity(images, self.scorer.text_features(prompts))
            if "fid" in self.metrics:
                found["fid"] = looks[:, [wanted.index(i) for i in judged]].double().numpy()
        if "motion" in self.metrics:
            found["motion"] = motion_module.motion_magnitude(videos)
            found["temporal_std"] = motion_module.temporal_std(videos)
        # Stored only when all succeeded: the metrics of a row never count different clips.
        for name, values in found.items():
            self._parts.setdefault(name, []).append(values)
        self.n += len(videos)

    def values(self, name: str) -> Array:
        """What was gathered, float64: "motion", "temporal_std" and "clipsim" (n,), features "fvd" (n, D) and
        "fid" (n, k, D). UserError for what was not measured."""
        if name not in self._parts:
            measured = ", ".join(sorted(self._parts)) or "nothing before add()"
            raise UserError(f"no {name!r} was measured: there is {measured}")
        return np.concatenate(self._parts[name])

    def row(
        self,
        *,
        teacher: str,
        method: str,
        sampler: str,
        steps: int,
        guidance: float,
        teacher_motion: Array | None = None,
        **measured: Any,
    ) -> Row:
        """The row of all clips added since `reset()`.

        teacher_motion: `values("motion")` (n,) of the teacher's evaluator, same prompts and seeds in the same
        order; without it the motion ratio stays None. measured: optional fields of `Row` found elsewhere
        (seconds, action_accuracy ...). UserError when no clip was added, or fewer than 2 for a Frechet distance.
        """
        if self.n == 0:
            raise UserError(f"no videos to measure for {method} at {steps} steps: add() some first")
        results: dict[str, Any] = {}
        intervals: dict[str, Interval] = {}
        notes: list[str] = []
        spread = {"samples": self.samples, "seed": self.seed}
        for metric, distance, target in (("fvd", fvd, self.reference), ("fid", fid, self.pictures)):
            if target is not None:
                values = self.values(metric)
                results[metric] = distance(values, target)
                if self.n >= 4:  # fewer have no half to draw
                    intervals[metric] = frechet_interval(target, values, self.frechet_samples, seed=self.seed)
        for metric in ("clipsim", "motion", "temporal_std"):
            if metric in self._parts:
                values = self.values(metric)
                results[metric] = float(values.mean())
                if self.n > 1:  # one clip has no spread
                    intervals[metric] = mean_interval(values, **spread)
        if "motion" in self.metrics and teacher_motion is not None:
            ratio = motion_module.ratio_of_motion(self.values("motion"), teacher_motion, **spread)
            if ratio.reason is None:
                results["motion_ratio"], intervals["motion_ratio"] = ratio.value, ratio.interval
            else:
                notes.append(f"no motion ratio: {ratio.reason}")
        return Row(
            teacher=teacher,
            method=method,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            n=self.n,
            intervals={name: list(ends) for name, ends in intervals.items()},
            notes=tuple(notes),
            **results,
            **measured,
        )

    def protocol(self) -> dict[str, dict[str, Any]]:
        """How each metric is measured: networks, references and resamples, for `report.provenance`."""
        protocols: dict[str, dict[str, Any]] = {}
        means = f"{self.samples} bootstrap resamples, percentiles, 95 %"
        distances = f"{self.frechet_samples} half-samples of the generated clips, 95 %"
        if self.video_features is not None and self.reference is not None:
            protocols["fvd"] = {
                **self.video_features.protocol(),
                "reference_clips": self.reference.n,
                "intervals": distances,
            }
        if self.scorer is not None and "clipsim" in self.metrics:
            protocols["clipsim"] = {**self.scorer.protocol(), "frames": "all", "intervals": means}
        if self.scorer is not None and self.pictures is not None:
            protocols["fid"] = {
                **self.scorer.protocol(),
                "features": f"mean of the patches after {self.scorer.half} blocks",
                "dimensions": self.pictures.mean.size,
                "frames_per_clip": self.frames_per_clip,
                "pictures": self.pictures.n,
                "intervals": distances,
            }
        if "motion" in self.metrics:
            protocols["motion"] = {**motion_module.protocol(), "intervals": means}
        return protocols
