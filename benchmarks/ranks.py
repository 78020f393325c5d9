"""Trains 10 updates of four micro-batches on 1, 2 and 4 processes, and says how far their results lie apart.

    PYTHONPATH=src:tests python benchmarks/ranks.py              into benchmarks/ranks.json

Tiny networks, the paper's method with its discriminator, adapters, and a full student divided by FSDP2 (1
and 2 processes); see tests/ranks_program.py. Differences are the largest over all elements, against a single
process with accumulation 4: of the gradients of the first update, and of weights and buffers after the last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from ranks_program import MICRO_BATCHES, SETTINGS
from stage import make_players

from mcm.evaluation.report import provenance
from mcm.methods import method
from mcm.output import write_json
from mcm.training.checkpoint import load_state
from mcm.verify import leaves

HERE = Path(__file__).parent
TRIALS = {"long": (1, 2, 4), "full-long": (1, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "ranks.json")
    given = parser.parse_args()
    program, rows = HERE.parent / "tests" / "ranks_program.py", []
    with tempfile.TemporaryDirectory(prefix="mcm-ranks-") as folder:
        teachers = Path(folder) / "teachers"
        make_players(teachers, method("mcm"))
        for trial, worlds in TRIALS.items():
            for world in worlds:
                launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
                out = Path(folder) / str(world)
                subprocess.run([sys.executable, *launcher, str(program), str(teachers), str(out), trial], check=True)
                one, many = (load_state(Path(folder) / str(n) / f"{trial}.safetensors") for n in (1, world))
                rows.append({
                    "student": SETTINGS[trial].get("kind", "lora"), "processes": world,
                    "accumulation": MICRO_BATCHES // world, "updates": SETTINGS[trial]["updates"],
                    "gradients": furthest(one["gradients"], many["gradients"]),
                    "weights": furthest(*(without_optimizers(found["state"]) for found in (one, many))),
                })  # fmt: skip
                print(rows[-1], flush=True)
    write_json(given.out, {"rows": rows, "provenance": provenance()})


def without_optimizers(state: dict[str, object]) -> dict[str, object]:
    return {part: tree for part, tree in state.items() if part != "optimizers"}


def furthest(one: object, other: object) -> float:
    """The largest difference between tensors of the same names."""
    first, second = dict(leaves(one)), dict(leaves(other))
    assert first.keys() == second.keys()
    return max(
        float((second[name].double() - value.double()).abs().max())
        for name, value in first.items()
        if isinstance(value, torch.Tensor)
    )


if __name__ == "__main__":
    main()
