"""Pictures of what pictures do: the same held-out prompts and seeds through several models.

    python benchmarks/looks.py pocket-modelscope:25 pocket-modelscope-mcm:4 runs/studio:4 --out docs/images/looks

A row a prompt, a column a model, as MODEL:STEPS. Writes OUT.png and OUT.gif.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mcm.data.video import compare_gif, contact_sheet
from mcm.generate import generate, load_maker
from mcm.pocket import world

SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL:STEPS")
    parser.add_argument("--titles", nargs="*", help="of the columns; default the models as they are named")
    parser.add_argument("--out", type=Path, required=True, help="without its ending")
    given = parser.parse_args()
    prompts = world.held_out_prompts()
    chosen = world.one_of_each(prompts)
    columns: list[list[np.ndarray]] = []
    for named in given.models:
        model, _, steps = named.rpartition(":")
        # The quickstart's prompts with the quickstart's seeds: what is shown there is shown here.
        seeds = [SEED + i for i in chosen]
        films = generate(load_maker(model), [prompts[i] for i in chosen], seeds=seeds, steps=int(steps))
        columns.append([film.frames for film in films])
    rows = [[column[row] for column in columns] for row in range(len(chosen))]
    labels, titles = [prompts[i] for i in chosen], given.titles or given.models
    contact_sheet(given.out.with_suffix(".png"), rows, labels, titles, scale=1.5)
    compare_gif(given.out.with_suffix(".gif"), rows, [text.split(" trousers ")[-1] for text in labels], titles, fps=6)


if __name__ == "__main__":
    main()
