"""Pictures of what pictures do: the same held-out prompts and seeds through several models, as the README shows them.

    python benchmarks/looks.py pocket-modelscope:25 pocket-modelscope-mcm:4 runs/pocket-modelscope-mcm-studio:4 \\
        --titles "teacher, 25 steps" "student, 4 steps" "student, studio pictures, 4 steps" --out docs/images/looks

A row a prompt, a column a model, as MODEL:STEPS. Writes OUT.png and OUT.gif. Prompts and seeds are the quickstart's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcm.generate import generate, load_maker
from mcm.pocket import world
from mcm.pocket.quickstart import SEED, compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL:STEPS")
    parser.add_argument("--titles", nargs="*", help="of the columns; default the models as they are named")
    parser.add_argument("--out", type=Path, required=True, help="without its ending")
    given = parser.parse_args()
    prompts = world.held_out_prompts()
    chosen = world.one_of_each(prompts)
    texts, seeds = [prompts[i] for i in chosen], [SEED + i for i in chosen]
    columns = []
    for named in given.models:
        model, _, steps = named.rpartition(":")
        columns.append(list(generate(load_maker(model), texts, seeds=seeds, steps=int(steps))))
    compare(columns, given.titles or given.models, given.out)


if __name__ == "__main__":
    main()
