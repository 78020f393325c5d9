"""The quickstart: distil a pocket teacher with MCM, make videos, compare them and score them.

    python -m mcm.pocket.quickstart --out runs/quickstart

It calls what anyone calls: `mcm.distill`, `mcm.generate`, `mcm.evaluate`. What it finds finished it leaves alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcm.cli.terminal import progress, say
from mcm.errors import UserError
from mcm.output import write_json

if TYPE_CHECKING:
    from mcm.evaluation.report import Row
    from mcm.generate import Maker, Video

TEACHER = "pocket-modelscope"
COLUMNS = ["teacher, 25 steps", "teacher, 4 steps (DDIM)", "student, 4 steps"]
SEED = 1000
# The recipe cut down to what a newcomer waits for.
QUICK = {"training.updates": 100, "training.preview_every": 100, "data.laboratory_clips": 512}
# A Frechet distance of few clips is mostly bias: real clips against other real ones gave 1.27 (40 against 512), 0.23
# (256 against 512) and 0.14 (256 against 1,024), where 0 is the truth (docs/log.md).
COUNT, REAL = 384, 3  # clips a row, and how many times as many real ones: of the same prompts, then of others held out
FULL = 32  # clips of the teacher in 25 steps, which take longest: for the eye, the motion and the CLIPSIM
SHORT = {"training.updates": 3, "training.preview_every": 3, "data.laboratory_clips": 16}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mcm.pocket.quickstart", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--short", action="store_true", help="a few updates and clips: checks the way, not the result")
    given = parser.parse_args(arguments)
    try:
        run(given.out, given.short)
    except UserError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def run(out: Path, short: bool = False) -> None:
    """Everything, in order. `short`: as few updates and clips as show that each step works."""
    begun = time.monotonic()
    from mcm.distill import distill
    from mcm.generate import generate, load_maker, save_video
    from mcm.pocket import world
    from mcm.recipe import apply_overrides
    from mcm.recipes import load_recipe

    count, full = (4, 4) if short else (COUNT, FULL)
    recipe = apply_overrides(load_recipe(TEACHER), SHORT if short else QUICK)
    say(f"1/3  distilling {TEACHER} with {recipe.method.name}: {recipe.training.updates} updates")
    with progress() as told:
        distill(recipe, out, told)

    say(f"2/3  making {count} videos each with the teacher and the student in 4 steps, {full} with the teacher in 25")
    teacher, student = load_maker(TEACHER), load_maker(out / "student")
    prompts = world.held_out_prompts(count)
    films: list[list[Video]] = []
    with progress() as told:
        for maker, steps, sampler, name in ((teacher, 25, "dpm++", 0), (teacher, 4, "ddim", 1), (student, 4, None, 2)):
            made: list[Video] = []
            said = prompts[: full if name == 0 else count]
            for video in generate(maker, said, seeds=[SEED], steps=steps, sampler=sampler, batch=8):
                made.append(video)
                told(COLUMNS[name], len(made), len(said))
            films.append(made)
    chosen = world.one_of_each(prompts[:full])
    for i in chosen:
        save_video(films[2][i], out / "videos")
    compare([[column[i] for i in chosen] for column in films], COLUMNS, out / "compare")

    say("3/3  scoring them against clips of the same held-out prompts")
    report = _scored(films, student, REAL * count, out)
    write_json(out / "timing.json", {"seconds": round(time.monotonic() - begun, 1)})
    for row in report:
        distance = "-" if row.fvd is None else f"{row.fvd:.2f}"
        cells = [f"FVD {distance:>5}", f"CLIPSIM {row.clipsim:.2f}", f"motion {row.motion_ratio:.2f}"]
        say(f"  {row.method:>6} {row.steps:>2} steps  {'  '.join(cells)}")
    say(f"look at {out / 'compare.gif'}, {out / 'compare.png'} and {out / 'videos'}; numbers: {out / 'report.json'}")


def compare(columns: list[list[Video]], titles: list[str], place: Path) -> None:
    """`place`.png and .gif: a row for each prompt, a column (videos of the same prompts) for each system."""
    from mcm.data.video import compare_gif, contact_sheet

    rows = [[video.frames for video in row] for row in zip(*columns, strict=True)]
    labels = [video.prompt for video in columns[0]]
    contact_sheet(place.with_suffix(".png"), rows, labels, titles, scale=1.5)
    compare_gif(place.with_suffix(".gif"), rows, [text.split(" trousers ")[-1] for text in labels], titles, fps=6)


def _scored(films: list[list[Video]], student: Maker, real_clips: int, out: Path) -> list[Row]:
    """Score the three systems and write report.json."""
    import torch

    from mcm.data.open import open_videos
    from mcm.evaluation.evaluator import Evaluator
    from mcm.evaluation.motion import ratio_of_motion
    from mcm.evaluation.report import Report, provenance
    from mcm.pocket import zoo

    count = max(map(len, films))
    real = open_videos("pocket:broadcast", student.frames, student.size, real_clips, split="reference")
    evaluator = Evaluator(
        ("fvd", "clipsim", "motion"), (clip.video for clip in real), zoo.VIDEO_FEATURES, zoo.CLIP
    )
    rows: list[Row] = []
    motion = None
    for made in films:
        evaluator.reset()
        for video in made:
            pixels = torch.from_numpy(video.frames).permute(3, 0, 1, 2).float() / 127.5 - 1
            evaluator.add(pixels[None], [video.prompt])
        moved = evaluator.values("motion")
        motion = moved if motion is None else motion
        settings = made[0].settings
        method = student.card.method if student.card and made is films[2] else settings["sampler"]
        row = evaluator.row(
            teacher=TEACHER, method=method, sampler=settings["sampler"], steps=settings["steps"],
            guidance=settings["guidance_scale"], teacher_motion=motion if len(motion) == len(moved) else None,
        )  # fmt: skip
        if row.motion_ratio is None:  # beside the teacher's clips, which are fewer
            ratio = ratio_of_motion(moved[: len(motion)], motion)
            between = {**row.intervals, "motion_ratio": list(ratio.interval)}
            notes = (*row.notes, f"motion ratio of the first {ratio.n} clips")
            row = replace(row, motion_ratio=ratio.value, intervals=between, notes=notes)
        if len(made) < count:
            between = {name: ends for name, ends in row.intervals.items() if name != "fvd"}
            notes = (*row.notes, "no FVD: too few clips to compare with the other rows'")
            row = replace(row, fvd=None, intervals=between, notes=notes)
        rows.append(row)
    Report(rows, provenance(evaluator.protocol())).save(out / "report.json")
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
