"""Measures how well videos follow a pose: pocket-animatediff with its ControlNet, and students of it.

    python benchmarks/pose.py                     the teacher, into benchmarks/pose.json
    python benchmarks/pose.py runs/mine --steps 4 a student's row beside it

Each of `--count` held-out clips gives its caption and its exact keypoints. A network that was trained on rendered
frames alone, and took no part in making the videos, finds the keypoints in what is made; the error is their mean
distance in pixels of a side of 64. Two rows are there to read the others by: the rendered clips themselves (what the
network errs by), and videos that were told no pose.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mcm.evaluation.bootstrap import mean_interval
from mcm.evaluation.report import provenance
from mcm.generate import generate, load_maker
from mcm.output import write_json
from mcm.pocket import world, zoo
from mcm.pocket.pose import PoseNetwork, keypoint_error
from mcm.pocket.sources import poses_of

HERE = Path(__file__).parent
SEED = 5000
TEACHER = "pocket-animatediff"
TEACHERS_ROWS = (("dpm++", 25, True), ("dpm++", 4, True), ("ddim", 4, True), ("dpm++", 25, False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", help="folders of students of pocket-animatediff")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8], help="of students")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--out", type=Path, default=HERE / "pose.json")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    specs = [world.spec("reference", i) for i in range(given.count)]
    points = world.stage(specs, 8)
    network = PoseNetwork.load(zoo.pose_file())

    def row(name: str, sampler: str | None, steps: int | None, posed: bool, videos: torch.Tensor) -> None:
        errors = keypoint_error(network, videos, points).numpy()
        low, high = mean_interval(errors)
        told = {"system": name, "sampler": sampler, "steps": steps, "pose": posed, "n": len(errors)}
        rows.append({**told, "keypoint_error": float(errors.mean()), "interval": [low, high]})
        write_json(given.out, {"rows": rows, "provenance": provenance()})
        how = " ".join(str(word) for word in (name, sampler, steps, "posed" if posed else "") if word)
        print(f"{how}: {errors.mean():.2f} ({low:.2f}-{high:.2f})", flush=True)

    def made(model: str, sampler: str | None, steps: int, posed: bool) -> torch.Tensor:
        maker = load_maker(model)
        videos = []
        for i, (spec, pose) in enumerate(zip(specs, poses_of(specs, 8), strict=True)):
            asked = {"seeds": [SEED + i], "steps": steps, "sampler": sampler, "pose": pose if posed else None}
            (video,) = generate(maker, spec.caption, **asked)
            videos.append(torch.from_numpy(video.frames).permute(3, 0, 1, 2).float() / 127.5 - 1)
        return torch.stack(videos)

    rows: list[dict[str, object]] = []
    row("rendered clips", None, None, True, world.film(specs, "broadcast").video)
    for sampler, steps, posed in TEACHERS_ROWS:
        row(TEACHER, sampler, steps, posed, made(TEACHER, sampler, steps, posed))
    for student in given.students:
        for steps in given.steps:
            row(Path(student).name, None, steps, True, made(student, None, steps, True))


if __name__ == "__main__":
    main()
