"""`mcm evaluate`: how near a model's videos are to real ones, to their prompts, to the teacher's motion."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from mcm.cli.terminal import cell, progress, say, show, tell
from mcm.cli.usage import UsageError, usage
from mcm.output import claim, holds, write_text

FILE, REPORT, PAGE = "evaluate.json", "report.json", "report.html"
_COLUMNS = ("method", "sampler", "steps", "guidance", "n", "fvd", "clipsim", "motion_ratio", "fid")
Metric = Literal["fvd", "clipsim", "fid", "motion"]
_DEFAULT: tuple[Metric, ...] = ("fvd", "clipsim", "motion")

app = App(
    name="evaluate",
    help_epilogue="Example: mcm evaluate runs/pocket-animatediff --reference clips/ --steps 1 2 4 8",
    help_format="plaintext",
)


def _spaced(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


@app.default
def evaluate(
    model: Annotated[
        str, Parameter(help="a student's or a run's folder, a teacher's name, folder or hub id")
    ],
    /,
    *,
    reference: Annotated[str, Parameter(help="real videos: a folder or table, or pocket:broadcast")],
    steps: Annotated[
        tuple[int, ...],
        Parameter(
            negative="",
            consume_multiple=True,
            show_default=_spaced,
            help="numbers of steps",
            validator=validators.Number(gte=1),
        ),
    ] = (1, 2, 4, 8),
    metrics: Annotated[
        tuple[Metric, ...] | None,
        Parameter(
            negative="",
            consume_multiple=True,
            help="[default: fvd clipsim motion, and fid where --images is given]",
        ),
    ] = None,
    images: Annotated[str | None, Parameter(help="pictures to compare single frames with (fid)")] = None,
    prompts: Annotated[
        Path | None, Parameter(help="file of prompts [default: the captions of the reference]")
    ] = None,
    count: Annotated[
        int, Parameter(help="videos for each number of steps", validator=validators.Number(gte=2))
    ] = 256,
    sampler: Annotated[
        str | None, Parameter(help="for teachers (mcm list); students know their own, and tcd in its place")
    ] = None,
    guidance_scale: Annotated[
        float | None, Parameter(help="for teachers; 1 is none", validator=validators.Number(gte=0))
    ] = None,
    fvd_model: Annotated[
        str | None,
        Parameter(
            help="VideoMAE, a folder or hub id, or I3D's TorchScript file [default: pocket's own or a published one]"
        ),
    ] = None,
    fvd_sha256: Annotated[
        str | None, Parameter(help="of a TorchScript file that you trust [default: the known I3D's]")
    ] = None,
    clip: Annotated[
        str | None, Parameter(help="CLIP for clipsim and fid, a folder or hub id [default: as for --fvd-model]")
    ] = None,
    seed: Annotated[int, Parameter(help="of the first video", validator=validators.Number(gte=0))] = 0,
    out: Annotated[Path | None, Parameter(help="folder of report.json and report.html [default: only printed]")] = None,
    json: Annotated[
        bool, Parameter(negative="", show_default=False, help="print the report as JSON")
    ] = False,
) -> None:
    """Measure a student or a teacher: FVD, CLIPSIM, FID of the frames, motion beside the teacher's."""
    chosen = list(dict.fromkeys(metrics or (*_DEFAULT, *(("fid",) if images is not None else ()))))
    if "fid" in chosen and images is None:
        raise UsageError("the metric fid compares frames with pictures: give --images, or leave fid out")
    if images is not None and "fid" not in chosen:
        raise UsageError(
            "--images is read by the metric fid alone: add fid to --metrics, or leave --images out"
        )
    if "fvd" not in chosen and (fvd_model, fvd_sha256) != (None, None):
        raise UsageError("--fvd-model and --fvd-sha256 are read by the metric fvd alone: add it to --metrics")
    numbers = sorted(set(steps))
    asked = {
        "model": model,
        "reference": reference,
        "steps": numbers,
        "metrics": chosen,
        "images": images,
        "prompts": str(prompts) if prompts is not None else None,
        "count": count,
        "sampler": sampler,
        "guidance_scale": guidance_scale,
        "seed": seed,
    }
    judges = {"fvd_model": fvd_model, "fvd_sha256": fvd_sha256, "clip": clip}
    asked |= {name: value for name, value in judges.items() if value is not None}
    if out is not None:
        holds(out, asked, FILE)
    words = None
    if prompts is not None:
        from mcm.data.sources import Prompts

        words = list(Prompts(prompts))
    if sampler is not None:
        with usage():
            from mcm.samplers import sampler as known

            known(sampler)
    from mcm.evaluation.run import evaluate as run
    from mcm.evaluation.wall import Wall

    wall = Wall() if out is not None else None

    with progress() as told:
        report = run(
            model,
            reference=reference,
            steps=numbers,
            metrics=chosen,
            images=images,
            prompts=words,
            count=count,
            sampler=sampler,
            guidance_scale=guidance_scale,
            seed=seed,
            fvd_model=fvd_model,
            fvd_sha256=fvd_sha256,
            clip=clip,
            wall=wall,
            progress=told,
        )
    if out is not None and wall is not None:
        from mcm.evaluation.page import page

        claim(out, asked, FILE)
        report.save(out / REPORT)
        title = f"Evaluation of {model}"
        write_text(out / PAGE, page(report, wall.shown, title=title, reference=reference, settings=asked))
    if json:
        from mcm.evaluation.report import finite

        tell({"rows": [row.to_dict() for row in report.rows], "provenance": finite(report.provenance)})
        return
    columns = [name for name in _COLUMNS if any(getattr(row, name) is not None for row in report.rows)]
    cells = [[cell(getattr(row, name)) for name in columns] for row in report.rows]
    show(f"{report.rows[0].teacher} against {reference}" if report.rows else "", columns, cells)
    for note in dict.fromkeys(note for row in report.rows for note in row.notes):
        say(f"note: {note}")
    if out is not None:
        say(f"report: {out / REPORT}, to look at: {out / PAGE}")
