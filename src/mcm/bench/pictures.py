"""A bench to look at: step curves and video walls."""

from __future__ import annotations

from pathlib import Path

from mcm.bench.run import Bench
from mcm.bench.suite import GUIDANCE, Suite
from mcm.data.video import compare_gif
from mcm.evaluation.curves import step_curves
from mcm.evaluation.report import Report
from mcm.generate import generate, load_maker


def draw(suite: Suite, out: Path, report: Report) -> list[Path]:
    """curves.svg and curves.png of the suite's table, and wall-TEACHER.gif: its prompts, a column for each system.

    Systems that a table's column of steps is not whole of (parts, ablations) stay out.
    """
    whole_steps = {s.method for s in suite.systems if s.table}
    rows = [row for row in report.rows if row.method in whole_steps and row.steps in (1, 2, 4, 8)]
    made = [step_curves(out / f"curves.{kind}", rows) for kind in ("svg", "png")] if rows else []
    work = Bench(suite, out)
    for teacher in dict.fromkeys(row.teacher for row in rows):
        shown = [
            s for s in suite.systems
            if s.table and s.seed == 0 and Path(s.teacher).name == teacher and suite.trial_steps in s.steps
            and work.finished(s)
        ]  # fmt: skip
        columns = []
        for system in shown:
            maker = load_maker(system.teacher if system.sampler else out / "students" / system.name)
            guidance = work.settings(system).get(GUIDANCE)
            columns.append([
                video.frames for video in generate(
                    maker, suite.shown, seeds=[1], steps=suite.trial_steps, sampler=system.sampler,
                    guidance_scale=guidance,
                )
            ])  # fmt: skip
        if columns:
            cells = [list(line) for line in zip(*columns, strict=True)]
            labels = [system.method for system in shown]
            made.append(compare_gif(out / f"wall-{teacher}.gif", cells, suite.shown, labels, fps=6))
    return made
