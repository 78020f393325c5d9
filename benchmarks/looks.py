"""Pictures of what pictures do: the same held-out prompts and seeds through several models, as the README shows them.

    python benchmarks/looks.py pocket-modelscope:25 pocket-modelscope-mcm:4 runs/pocket-modelscope-mcm-studio:4 \\
        --titles "teacher, 25 steps" "student, 4 steps" "student, studio pictures, 4 steps" --out docs/images/looks

    python benchmarks/looks.py pocket-animatediff:25 pocket-animatediff:4 runs/mine:4 --pose --out docs/images/pose

A row a prompt, a column a model, as MODEL:STEPS. Writes OUT.png and OUT.gif. Prompts and seeds are the quickstart's.
With --pose all follow the exact keypoints of the prompts' held-out clips, which stand drawn in the first column.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from mcm.data.encode import as_pixels
from mcm.data.poses import Poses
from mcm.generate import Maker, Video, generate, load_maker
from mcm.pocket import world
from mcm.pocket.quickstart import SEED, compare
from mcm.pocket.sources import poses_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL:STEPS")
    parser.add_argument("--titles", nargs="*", help="of the columns; default the models as they are named")
    parser.add_argument("--out", type=Path, required=True, help="without its ending")
    parser.add_argument("--pose", action="store_true", help="with the keypoints of the prompts' own clips")
    given = parser.parse_args()
    prompts = world.held_out_prompts()
    chosen = world.one_of_each(prompts)
    texts, seeds = [prompts[i] for i in chosen], [SEED + i for i in chosen]
    poses = poses_of([world.spec("reference", i) for i in chosen], 8) if given.pose else [None] * len(chosen)
    columns, titles = list[list[Video]](), list(given.titles or given.models)
    for named in given.models:
        name, _, steps = named.rpartition(":")
        model = load_maker(name)
        asked = zip(texts, seeds, poses, strict=True)
        columns.append([_made(model, text, seed, int(steps), pose) for text, seed, pose in asked])
    if given.pose:
        columns.insert(0, [_drawn(video, pose) for video, pose in zip(columns[0], poses, strict=True)])
        titles.insert(0, "pose")
    compare(columns, titles, given.out)


def _made(model: Maker, prompt: str, seed: int, steps: int, pose: Poses | None) -> Video:
    (video,) = generate(model, prompt, seeds=[seed], steps=steps, pose=pose)
    return video


def _drawn(video: Video, pose: Poses) -> Video:
    """The skeletons that the video's model was shown."""
    frames, height, width, _ = video.frames.shape
    return replace(video, frames=as_pixels(pose.pictures(frames, (height, width)) * 2 - 1).numpy())


if __name__ == "__main__":
    main()
