"""Measures the zoo: its teachers and the students that are shipped, on held-out prompts of the pocket world.

    python benchmarks/zoo.py                              everything, into benchmarks/zoo.json
    python benchmarks/zoo.py pocket-animatediff --count 64 --guidance 2 --tuning --out trial.json

Every system makes a video for each of the first `--count` held-out prompts, with the same seeds. FVD is against real
clips of the same prompts (and as many more), the FID of the frames against pictures of held-out combinations, and the
accuracies are the judge's word. Rows that the file already has are made again only with --again. Several of these may
work at a time on files of their own; --merge puts files together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mcm.evaluation.report import Report, provenance
from mcm.generate import load_maker
from mcm.pocket import zoo
from mcm.pocket.scoring import Scoring, line

HERE = Path(__file__).parent
TEACHERS_ROWS = (("dpm++", 25), ("dpm++", 4), ("ddim", 4))
STUDENTS_ROWS = ((None, 1), (None, 2), (None, 4), (None, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="default: every teacher and student of the zoo")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--guidance", type=float, help="of the teachers; default their own")
    parser.add_argument("--rows", nargs="*", help="only these, as sampler:steps (dpm++:25) or steps of a student (4)")
    parser.add_argument("--tuning", action="store_true", help="on the prompts and clips that settings are chosen by")
    parser.add_argument("--out", type=Path, default=HERE / "zoo.json")
    parser.add_argument("--merge", nargs="+", type=Path, help="put these files' rows into --out, and make none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    report = Report.load(given.out) if given.out.exists() and not given.again else Report()
    if given.merge:
        for part in map(Report.load, given.merge):
            # The parts' own commands name files that are gone; without --out it is one command for all rows.
            report = Report(report.merge(part.rows).rows, {**part.provenance, "command": ["zoo.py"]})
        report.save(given.out)
        return

    scoring = Scoring(given.count, 2 * given.count, given.tuning, kept=Path("runs/zoo-kept"))
    report.provenance = provenance(scoring.evaluator.protocol())
    for model in given.models or [*zoo.teachers(), *zoo.students()]:
        maker = load_maker(model)
        teacher = maker.card.teacher.name if maker.card else model
        guidance = given.guidance if maker.card is None else None
        for sampler, steps in TEACHERS_ROWS if maker.card is None else STUDENTS_ROWS:
            name = f"{sampler}:{steps}" if sampler else str(steps)
            method = sampler or Path(model).name
            key = (teacher, method, maker.sampler(sampler).name, steps, maker.guidance(guidance))
            known = {(r.teacher, r.method, r.sampler, r.steps, r.guidance) for r in report.rows}
            if (given.rows is not None and name not in given.rows) or key in known:
                continue
            row = scoring.row(maker, method, steps, sampler, guidance)
            report = report.merge([row])
            report.save(given.out)
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
