"""`mcm bench`: every system of a suite, distilled, made and scored alike, in one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

from mcm.cli.terminal import cell, progress, say, show, tell
from mcm.cli.usage import usage

_COLUMNS = ("method", "steps", "guidance", "seed", "n", "fvd", "clipsim", "motion_ratio", "action_accuracy", "fid")

app = App(
    name="bench",
    help_epilogue='Example: mcm bench pocket --only "pocket-modelscope.*" --jobs 2',
    help_format="plaintext",
)


@app.default
def bench(
    suite: Annotated[str, Parameter(help="pocket: the paper's tables in the laboratory")] = "pocket",
    /,
    *,
    out: Annotated[
        Path, Parameter(help="folder of all that is made; the same command goes on there")
    ] = Path("runs/bench"),
    only: Annotated[
        tuple[str, ...],
        Parameter(
            negative="", consume_multiple=True, show_default=False, help="patterns of systems' names [default: all]"
        ),
    ] = (),
    updates: Annotated[
        int | None, Parameter(help="of each distillation [default: the suite's]", validator=validators.Number(gte=4))
    ] = None,
    count: Annotated[
        int | None, Parameter(help="clips a cell [default: the suite's]", validator=validators.Number(gte=4))
    ] = None,
    jobs: Annotated[
        int, Parameter(help="systems at a time, each on its part of the cores", validator=validators.Number(gte=1))
    ] = 1,
    threads: Annotated[
        int | None, Parameter(help="cores in use [default: all]", validator=validators.Number(gte=1))
    ] = None,
    pictures: Annotated[bool, Parameter(help="draw step curves and video walls, which report.html has too")] = True,
    names: Annotated[
        bool, Parameter(name="--list", negative="", show_default=False, help="name the systems, and make nothing")
    ] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="print the report as JSON")] = False,
) -> None:
    """Measure every system of a suite: same budget, same tuning, held-out prompts."""
    from mcm.bench import bench as run
    from mcm.bench import suite as suite_named
    from mcm.bench.pictures import draw, write_page
    from mcm.evaluation.wall import Wall

    with usage():
        found = suite_named(suite)
        changes = {key: value for key, value in (("updates", updates), ("count", count)) if value is not None}
        found = replace(found, **changes)
        chosen = found.chosen(only)
    if names:
        for system in chosen:
            say(system.name)
        return
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    with progress() as told:
        report = run(found, out, only, jobs, told)
    wall = Wall()
    drawn = draw(found, out, report, wall) if pictures else []
    drawn.append(write_page(found, out, report, wall))
    if json:
        tell({"rows": [row.to_dict() for row in report.rows], "provenance": report.provenance})
        return
    for teacher in dict.fromkeys(row.teacher for row in report.rows):
        rows = [row for row in report.rows if row.teacher == teacher]
        show(teacher, list(_COLUMNS), [[cell(getattr(row, name)) for name in _COLUMNS] for row in rows])
    for path in drawn:
        say(f"drawn: {path}")
    say(f"all rows: {out / f'{found.name}.json'}")
