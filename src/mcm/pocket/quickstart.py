"""The quickstart: distil a pocket teacher with MCM, make videos, compare and score them; about ten minutes on two cores.

    python -m mcm.pocket.quickstart --out runs/quickstart

It calls what anyone calls: `mcm.distill`, `mcm.generate`, `mcm.evaluate`. What it finds finished it leaves alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mcm.cli.terminal import progress, say
from mcm.errors import UserError
from mcm.output import write_json

TEACHER = "pocket-animatediff"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mcm.pocket.quickstart", description=__doc__.splitlines()[0])
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
    """Everything, in order. `short`: as many updates and clips as show that each step works."""
    begun = time.monotonic()
    from mcm.data.video import compare_gif, contact_sheet
    from mcm.distill import distill
    from mcm.evaluation.evaluator import Evaluator
    from mcm.evaluation.report import Report, provenance
    from mcm.evaluation.run import made
    from mcm.generate import generate, load_maker, save_video
    from mcm.pocket import sources, world, zoo
    from mcm.recipe import apply_overrides
    from mcm.recipes import load_recipe

    count = 16 if short else 96
    recipe = load_recipe(TEACHER)
    if short:
        recipe = apply_overrides(recipe, {"training.updates": 4, "training.preview_every": 4})
    say(f"1/3  distilling {TEACHER} with {recipe.method.name}: {recipe.training.updates} updates")
    with progress() as told:
        distill(recipe, out, told)

    say("2/3  making videos: the teacher in 25 and in 4 steps, the student in 4")
    student, teacher = load_maker(out / "student"), load_maker(TEACHER)
    prompts = _one_of_each(world.held_out_prompts())
    seeds = list(range(1000, 1000 + len(prompts)))
    columns = ["teacher, 25 steps", "teacher, 4 steps (DDIM)", "student, 4 steps"]
    with progress() as told:
        systems = [(teacher, 25, None), (teacher, 4, "ddim"), (student, 4, None)]
        films: list[list] = []
        for done, (maker, steps, sampler) in enumerate(systems):
            films.append(list(generate(maker, prompts, seeds=seeds, steps=steps, sampler=sampler)))
            told("making videos", done + 1, len(systems))
    for video in films[2]:
        save_video(video, out / "videos")
    rows = [[column[i].frames for column in films] for i in range(len(prompts))]
    contact_sheet(out / "compare.png", rows, prompts, columns)
    compare_gif(out / "compare.gif", rows, [p.split(" trousers ")[-1] for p in prompts], columns, fps=6)

    say(f"3/3  scoring {count} clips of each against held-out clips of the world")
    reference = sources.PocketClips("broadcast", student.frames, student.size, 2 * count, split="reference")
    pictures = None
    if recipe.data.images is not None:
        domain = sources.domain(recipe.data.images)
        pictures = (p.image[None] for p in sources.PocketPictures(str(domain), student.size, 2 * count, "reference"))
    metrics = ["fvd", "clipsim", "motion"] + (["fid"] if pictures is not None else [])
    said = world.held_out_prompts(count)
    with progress() as told:
        evaluator = Evaluator(
            metrics, (c.video for c in reference), zoo.find(zoo.VIDEO_FEATURES), zoo.find(zoo.CLIP), pictures
        )
        report = []
        motion = None
        cells = [(teacher, 25, "dpm++"), (teacher, 4, "ddim"), (student, 4, None)]
        for maker, steps, sampler in cells:
            evaluator.reset()
            for videos, texts in made(maker, said, 5000, steps, sampler, None, 8, told, f"{maker.name}, {steps} steps"):
                evaluator.add(videos, texts)
            if motion is None:
                motion = evaluator.values("motion")
            report.append(
                evaluator.row(
                    teacher=TEACHER, method=maker.card.method if maker.card else maker.sampler(sampler).name,
                    sampler=maker.sampler(sampler).name, steps=steps, guidance=maker.guidance(), teacher_motion=motion,
                )
            )  # fmt: skip
    Report(report, provenance(evaluator.protocol())).save(out / "report.json")
    write_json(out / "timing.json", {"seconds": time.monotonic() - begun})
    for row in report:
        fid = f"  FID {row.fid:.3f}" if row.fid is not None else ""
        say(f"  {row.method:>6} {row.steps:>2} steps  FVD {row.fvd:8.2f}  CLIPSIM {row.clipsim:.2f}  motion {row.motion_ratio:.2f}{fid}")
    say(f"look at {out / 'compare.gif'}, {out / 'compare.png'} and {out / 'videos'}; all numbers: {out / 'report.json'}")


def _one_of_each(prompts: list[str]) -> list[str]:
    """The first prompt of every action."""
    from mcm.pocket.puppet import ACTIONS

    actions = [world_word for world_word in ("walking", "jumping", "waving", "squatting", "kicking", "bowing")]
    assert len(actions) == len(ACTIONS)
    return [next(p for p in prompts if word in p) for word in actions]


if __name__ == "__main__":
    raise SystemExit(main())
