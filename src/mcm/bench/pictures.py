"""A bench to look at: step curves, video walls and the page of its report."""

from __future__ import annotations

import json
from pathlib import Path

from mcm.bench.run import Bench
from mcm.bench.suite import Suite
from mcm.data.encode import as_pixels
from mcm.data.video import compare_gif, read_clip
from mcm.evaluation.curves import step_curves
from mcm.evaluation.page import page
from mcm.evaluation.report import Report, Row
from mcm.evaluation.wall import Wall
from mcm.generate import Video
from mcm.output import write_text


def draw(suite: Suite, out: Path, report: Report, wall: Wall | None = None) -> list[Path]:
    """curves.svg and curves.png of the suite's table; for each teacher wall-TEACHER.gif, the suite's prompts with a
    column for each system of the table, looks-TEACHER.gif, those that went on from one of them beside it, and
    large-TEACHER.gif, those of a size of their own.

    wall: is handed the table's clips, for the page.
    """
    rows = in_table(suite, report)
    made = [step_curves(out / f"curves.{kind}", rows) for kind in ("svg", "png")] if rows else []
    work = Bench(suite, out)
    for teacher in dict.fromkeys(Path(system.teacher).name for system in suite.systems):
        own = [s for s in suite.systems if Path(s.teacher).name == teacher and s.seed == 0 and work.finished(s)]
        films = {system.name: [_saved(path) for path in work.shown(system)] for system in own}
        table = [system for system in own if system.table and films[system.name]]
        looks = [system for system in own if system.after and films[system.name]]
        begun = [system for system in table if system.name == looks[0].after] if looks else []
        large = [system for system in own if system.shape and films[system.name]]
        walls = (("wall", table, 6, 2), ("looks", [*begun, *looks], 6, 2), ("large", large, 12, 1))
        for name, systems, fps, scale in walls:
            if systems:
                columns = [[film.frames for film in films[system.name]] for system in systems]
                cells = [list(line) for line in zip(*columns, strict=True)]
                labels = [f"{s.method}, {s.steps[0]} steps" if s.shape else s.method for s in systems]
                path = out / f"{name}-{teacher}.gif"
                made.append(compare_gif(path, cells, suite.shown, labels, fps=fps, scale=scale))
        if wall is not None:
            for system in table:
                for one in films[system.name]:
                    wall.keep(one.frames, one.prompt, one.seed, one.fps, teacher, system.method, suite.trial_steps)
    return made


def _saved(path: Path) -> Video:
    """What `mcm.generate.save_video` wrote: the film, and the JSON beside it."""
    settings = json.loads(path.with_suffix(".json").read_text())
    clip = read_clip(path, settings["frames"], tuple(settings["size"]))
    return Video(settings["prompt"], settings["seed"], as_pixels(clip).numpy(), settings["fps"], settings)


def in_table(suite: Suite, report: Report) -> list[Row]:
    """The rows of step curves: systems that a table's column of steps is not whole of (parts, ablations) stay out."""
    whole_steps = {s.method for s in suite.systems if s.table}
    return [row for row in report.rows if row.method in whole_steps and row.steps in (1, 2, 4, 8)]


def write_page(suite: Suite, out: Path, report: Report, wall: Wall) -> Path:
    """report.html: all rows, the table's step curves, and the clips that `draw` handed to the wall."""
    path, budget = out / "report.html", {"suite": suite.name, "updates": suite.updates, "count": suite.count}
    drawn = in_table(suite, report) or None
    write_text(path, page(report, wall.shown, title=f"Bench {suite.name}", settings=budget, drawn=drawn))
    return path
