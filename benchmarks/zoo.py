"""Measures the zoo: its teachers and the students that are shipped, on held-out prompts of the pocket world.

    python benchmarks/zoo.py                              everything, into benchmarks/zoo.json
    python benchmarks/zoo.py pocket-animatediff --count 64 --guidance 2 --out /tmp/trial.json

Every system makes a video for each of the first `--count` held-out prompts, with the same seeds. FVD is against real
clips of the same prompts (twice as many), the FID of the frames against studio pictures of held-out combinations, and
the accuracies are the judge's word. Rows that the file already has are made again only with --again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from mcm.data.open import open_pictures, open_videos
from mcm.evaluation.evaluator import Evaluator
from mcm.evaluation.report import Report, Row, provenance
from mcm.evaluation.run import made, motion_of
from mcm.generate import load_maker
from mcm.pocket import world, zoo
from mcm.pocket.judge import Judge, verdict

SEED, BATCH = 5000, 16
HERE = Path(__file__).parent


TEACHERS_ROWS = (("dpm++", 25), ("dpm++", 4), ("ddim", 4))
STUDENTS_ROWS = ((None, 1), (None, 2), (None, 4), (None, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="default: every teacher and student of the zoo")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--guidance", type=float, help="of the teachers; default their own")
    parser.add_argument("--rows", nargs="*", help="only these, as sampler:steps (dpm++:25) or steps of a student (4)")
    parser.add_argument("--out", type=Path, default=HERE / "zoo.json")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    specs = [world.spec("reference", i) for i in range(given.count)]
    prompts = [s.caption for s in specs]
    real = open_videos("pocket:broadcast", 8, (64, 64), 2 * given.count, split="reference")
    looks = open_pictures("pocket:studio", (64, 64), count=2 * given.count, split="reference")
    pictures = torch.stack([looks[i].image for i in range(len(looks))])
    evaluator = Evaluator(
        ("fvd", "clipsim", "fid", "motion"), (clip.video for clip in real), zoo.VIDEO_FEATURES, zoo.CLIP,
        iter(pictures.split(64)),
    )  # fmt: skip
    judge = Judge.load(zoo.judge_file())
    report = Report.load(given.out) if given.out.exists() and not given.again else Report()
    report.provenance = provenance(evaluator.protocol())
    motions: dict[str, np.ndarray] = {}
    for model in given.models or [*zoo.teachers(), *zoo.students()]:  # teachers first
        maker = load_maker(model)
        teacher = maker.card.teacher.name if maker.card else model
        guidance = given.guidance if maker.card is None else None
        for sampler, steps in TEACHERS_ROWS if maker.card is None else STUDENTS_ROWS:
            name = f"{sampler}:{steps}" if sampler else str(steps)
            method, scale = sampler or model, maker.guidance(guidance)
            key = (teacher, method, maker.sampler(sampler).name, steps, scale)
            if (given.rows is not None and name not in given.rows) or key in {row.key for row in report.rows}:
                continue
            if teacher not in motions:
                motions[teacher] = motion_of(load_maker(teacher), prompts, SEED, BATCH)
            evaluator.reset()
            videos, begun = [], time.monotonic()
            for batch, texts in made(maker, prompts, SEED, steps, sampler, guidance, BATCH):
                videos.append(batch)
                evaluator.add(batch, texts)
            seconds = (time.monotonic() - begun) / given.count
            right = verdict(judge, torch.cat(videos), specs)
            row = evaluator.row(
                teacher=teacher, method=method, sampler=maker.sampler(sampler).name, steps=steps, guidance=scale,
                teacher_motion=motions[teacher], seconds=seconds,
                action_accuracy=float(right["action"].mean()), scene_accuracy=float(right["scene"].mean()),
                colour_accuracy=float(right["colours"].mean()),
            )  # fmt: skip
            report = report.merge([row])
            report.save(given.out)
            print(line(f"{model} {name}", row), flush=True)


def line(name: str, row: Row) -> str:
    """A row for the screen."""
    ratio = "-" if row.motion_ratio is None else f"{row.motion_ratio:.2f}"
    return (
        f"{name} guidance {row.guidance:g}: FVD {row.fvd:.2f}  FID {row.fid:.3f}  CLIPSIM {row.clipsim:.1f}  "
        f"motion {ratio}  action {row.action_accuracy:.3f}  scene {row.scene_accuracy:.3f}  "
        f"colours {row.colour_accuracy:.3f}  {row.seconds:.2f} s a clip"
    )


if __name__ == "__main__":
    main()
