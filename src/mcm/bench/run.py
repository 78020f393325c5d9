"""The work of a bench: trials, distillations and scores, each in its own file, so that all is resumable.

The folder: tuning/NAME.json, rows/NAME.json and shown/NAME/ (a system each; all that is needed to go on, or to draw, on
another machine), students/NAME/ (runs), SUITE.json (all rows together).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mcm.bench.suite import GUIDANCE, Scorer, Suite, System
from mcm.data.cache import fingerprint
from mcm.errors import UserError
from mcm.evaluation.report import Report, Row, provenance
from mcm.output import Progress, claim, silent, write_json
from mcm.recipe import apply_overrides


class Bench:
    """A suite at work in a folder."""

    def __init__(self, suite: Suite, out: Path, progress: Progress = silent) -> None:
        self.suite, self.out, self.progress = suite, out, progress
        self._held_out: dict[int, Scorer] = {}

    def held_out(self, system: System) -> Scorer:
        """What scores a system's rows; made once for each number of clips."""
        count = system.count or self.suite.count
        if count not in self._held_out:
            self._held_out[count] = self.suite.scorer(count, False, self.out)
        return self._held_out[count]

    @cached_property
    def tuning(self) -> Scorer:
        return self.suite.scorer(self.suite.trial_count, True, self.out)

    # One system ---------------------------------------------------------------------------------------------------

    def rows_file(self, system: System) -> Path:
        return self.out / "rows" / f"{system.name}.json"

    def measured(self, system: System) -> Report:
        """The system's rows so far."""
        file = self.rows_file(system)
        return Report.load(file) if file.exists() else Report()

    def finished(self, system: System) -> bool:
        return {row.steps for row in self.measured(system).rows} >= set(system.steps)

    def measure(self, system: System) -> Report:
        """Make the system and score it at its numbers of steps; rows that exist stay."""
        report = self.measured(system)
        if self.finished(system):
            return report
        found, sampled = self.settings(system), self._sampled(system)
        begun = time.monotonic()
        maker = self._whole(system)
        seconds = time.monotonic() - begun
        settings = {**self.suite.shared, **system.settings, **found, **system.last}
        protocol = provenance(self.held_out(system).evaluator.protocol())
        report.provenance = {**protocol, "settings": settings, "training_seconds": round(seconds)}
        for steps in system.steps:
            if steps in {row.steps for row in report.rows}:
                continue
            kept = {} if sampled.sampler else {"seed": sampled.seed, "updates": self._updates(sampled.share)}
            row = self.held_out(system).row(
                maker, system.method, steps, system.sampler, found.get(GUIDANCE), style=system.style,
                shape=system.shape, progress=self.progress, **kept,
            )  # fmt: skip
            if system.shape or ((system.table or system.after) and steps == self.suite.trial_steps):
                self._show(system, maker, steps, found.get(GUIDANCE))
            report = report.merge([row])
            report.save(self.rows_file(system))
        return report

    def shown(self, system: System) -> list[Path]:
        """The system's videos of the suite's `shown` prompts, in their order; none if it has not been measured."""
        return sorted((self.out / "shown" / system.name).glob("*/*.mp4"))

    def _show(self, system: System, maker: Any, steps: int, guidance: float | None) -> None:
        from mcm.generate import generate, save_video

        frames, size = system.shape or (None, None)
        videos = generate(
            maker, self.suite.shown, seeds=[1], steps=steps, sampler=system.sampler, guidance_scale=guidance,
            frames=frames, size=size,
        )  # fmt: skip
        for number, video in enumerate(videos):
            save_video(video, self.out / "shown" / system.name / f"{number:02}")

    def settings(self, system: System) -> dict[str, Any]:
        """What the trials found best on the tuning prompts; made now if they are not yet."""
        if system.like is not None:
            return self.settings(self.suite.named(system.like))
        if len(system.trials) < 2:
            return dict(system.trials[0]) if system.trials else {}
        file = self.out / "tuning" / f"{system.name}.json"
        tried = json.loads(file.read_text()) if file.exists() else []
        other = replace(system, seed=1000 + system.seed)  # no seed of a trial is one of the runs that are reported
        for number, trial in enumerate(system.trials[len(tried) :], len(tried)):
            run = self.out / "tuning" / system.name / str(number)
            maker = self._made(other, trial, run, self.suite.tuning * self.suite.updates)
            row = self._trial(system, maker, trial.get(GUIDANCE))
            tried.append({"settings": dict(trial), system.by: getattr(row, system.by), "row": row.to_dict()})
            write_json(file, tried)
        return dict(_best(tried, system.by, self._start_action(system))["settings"])

    def _trial(self, system: System, maker: Any, guidance: float | None = None) -> Row:
        usual = self.suite.trial_steps if self.suite.trial_steps in system.steps else system.steps[0]
        return self.tuning.row(
            maker, system.method, system.trial_steps or usual, system.sampler, guidance, style=system.style,
            progress=self.progress,
        )  # fmt: skip

    def _start_action(self, system: System) -> float:
        """The action accuracy of the student that the system goes on from, scored as its trials are; 0 without."""
        if system.after is None:
            return 0.0
        file = self.out / "tuning" / f"{system.name}.start.json"
        if not file.exists():
            start = self._whole(self.suite.named(system.after))
            write_json(file, self._trial(system, start).to_dict())
        return json.loads(file.read_text()).get("action_accuracy") or 0.0

    def _updates(self, share: float) -> int:
        return max(1, round(self.suite.updates * share))

    def _sampled(self, system: System) -> System:
        """The system whose student or teacher is sampled: itself, if it is not `of` another."""
        return system if system.of is None else self.suite.named(system.of)

    def _whole(self, system: System) -> Any:
        """What a system samples, made with the whole of its budget."""
        sampled = self._sampled(system)
        run = self.out / "students" / sampled.name
        return self._made(sampled, self.settings(sampled), run, sampled.share * self.suite.updates)

    def _made(self, system: System, found: Mapping[str, Any], run: Path, updates: float) -> Any:
        """The teacher, or the student of this run, ready to sample."""
        from mcm.generate import load_maker

        if system.sampler is not None:
            return load_maker(system.teacher)
        self._train(system, found, run, updates)
        return load_maker(run)

    def _train(self, system: System, found: Mapping[str, Any], run: Path, updates: float) -> None:
        """The student of this run, and before it the one that it goes on from."""
        settings = {**system.settings, **found, **system.last}
        if system.after is not None:
            before = self.suite.named(system.after)
            start = self.out / "students" / before.name
            self._train(before, self.settings(before), start, before.share * self.suite.updates)
            settings["student.start"] = str(start)
        self._distil(system, settings, run, max(1, round(updates)))

    def _distil(self, system: System, settings: Mapping[str, Any], run: Path, updates: int) -> None:
        from mcm.distill import distill

        fixed = {"training.updates": updates, "training.seed": system.seed, "training.preview_every": 0}
        recipe = apply_overrides(self.suite.recipe(system.teacher), {**self.suite.shared, **settings, **fixed})
        # Runs that keep the same frames of the same clips share them encoded.
        shape = f"{recipe.data.frames}-{recipe.data.size}-{recipe.method.adversary == 'video'}"
        if recipe.data.videos is None:  # made by the teacher, with its bases
            made = fingerprint({"prompts": recipe.data.prompts, "bases": recipe.method.bases})[:8]
            shape += f"-made-{made}"
        cache = self.out / "clips" / f"{Path(system.teacher).name}-{shape}"
        distill(recipe, run, self.progress, cache)


def bench(
    suite: Suite, out: str | Path, only: Sequence[str] = (), jobs: int = 1, progress: Progress = silent
) -> Report:
    """Measure the systems of a suite (of them `only` those whose names fit a pattern), and put all rows together.

    jobs: systems at a time, each in a process of its own with an equal part of the cores; 1 works in this one.
    Systems that others are `like`, go on `after` or are `of` come first.

    Raises:
        UserError: where no system fits, or one cannot be made.
    """
    place = Path(out).expanduser()
    work = Bench(suite, place, progress)
    chosen = suite.chosen(only)
    claim(place, {"suite": suite.name, "updates": suite.updates, "count": suite.count}, "bench.json")
    for depth in sorted({suite.depth(system) for system in chosen}):
        todo = [s for s in chosen if suite.depth(s) == depth and not work.finished(s)]
        if jobs > 1 and len(todo) > 1:
            _in_processes(suite, place, todo, jobs, progress)
        for system in todo:
            work.measure(system)
    return together(suite, place)


def together(suite: Suite, out: Path) -> Report:
    """All rows that there are in the folder, in the suite's order, written to SUITE.json."""
    work = Bench(suite, out)
    reports = {s.name: work.measured(s) for s in suite.systems}
    known = {name: report for name, report in reports.items() if report.rows}
    rows = [row for report in known.values() for row in report.rows]
    own = ("settings", "training_seconds", "commit", "modified", "date")
    systems = {name: {key: report.provenance.get(key) for key in own} for name, report in known.items()}
    shared = next((dict(report.provenance) for report in known.values()), {})
    shared = {key: value for key, value in shared.items() if key not in (*own, "command")}
    report = Report(rows, shared | {"updates": suite.updates, "count": suite.count, "systems": systems})
    report.save(out / f"{suite.name}.json")
    return report


def _in_processes(suite: Suite, out: Path, todo: Sequence[System], jobs: int, progress: Progress) -> None:
    """Each system by the command itself in a process of its own; UserError with the last words of one that failed."""
    done = 0
    threads = max(1, _cores() // jobs)

    def make(system: System) -> tuple[System, int]:
        log = out / "logs" / f"{system.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mcm", "bench", suite.name, "--out", str(out), "--only", system.name]
        command += ["--jobs", "1", "--threads", str(threads), "--no-pictures"]
        command += ["--updates", str(suite.updates), "--count", str(suite.count)]
        with open(log, "w") as said:
            return system, subprocess.run(command, stdout=said, stderr=said).returncode

    with ThreadPoolExecutor(jobs) as pool:
        for system, code in pool.map(make, todo):
            done += 1
            progress("systems", done, len(todo), system.name)
            if code:
                log = out / "logs" / f"{system.name}.log"
                last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")
                pool.shutdown(cancel_futures=True)
                raise UserError(f"{system.name} failed ({last.strip()}); all it said is in {log}")


def _best(tried: Sequence[Mapping[str, Any]], by: str, start: float = 0.0) -> Mapping[str, Any]:
    """The trial with least of `by`, of those that did not pay for it with the action: at most 5 points of the judge's
    accuracy below the best trial's, and, if there are such, below the `start` that they went on from. Without a judge
    all are."""
    right = [one["row"].get("action_accuracy") or 0.0 for one in tried]
    wanted = max(right) if max(right) < start - 0.05 else max(*right, start)
    fit = [one for one, accuracy in zip(tried, right, strict=True) if accuracy >= wanted - 0.05]
    return min(fit, key=lambda one: one[by])


def _cores() -> int:
    import torch

    return torch.get_num_threads()
