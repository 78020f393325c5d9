"""Kills a run of training at random moments, goes on each time, and compares its end with an uninterrupted run's.

    python benchmarks/kills.py                    20 times, into benchmarks/kills.json
    python benchmarks/kills.py --kills 3 --out trial.json

The run is the paper's method with an averaged target on a pocket teacher and the laboratory's own clips. Every kill is
a SIGKILL at a moment drawn from (--seed): while the teacher is loaded, clips are encoded, an update is made or a
checkpoint is written. A run that comes to its end between two kills is compared, and the next one begun. That no clip
is lost or doubled is the stream's count, which is among what is compared: all tensors and numbers of the last
checkpoint, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcm.evaluation.report import provenance
from mcm.output import write_json
from mcm.recipe import apply_overrides
from mcm.recipes import load_recipe
from mcm.training.checkpoint import load_state
from mcm.training.trainer import checkpoints, saved_updates
from mcm.verify import first_difference, leaves

HERE = Path(__file__).parent
CHANGES = {
    "training.save_every": 2, "training.preview_every": 0, "training.batch": 2, "training.accumulation": 2,
    "data.laboratory_clips": 6, "method.target_decay": 0.9, "optim.warmup": 0,
    "training.tracker": "none",
}  # fmt: skip


def command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "mcm", "distill", str(recipe), "--out", str(out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="pocket-animatediff")
    parser.add_argument("--out", type=Path, default=HERE / "kills.json")
    given = parser.parse_args()
    recipe = apply_overrides(load_recipe(given.recipe), {**CHANGES, "training.updates": given.updates})
    with tempfile.TemporaryDirectory(prefix="mcm-kills-") as folder:
        place = Path(folder)
        recipe.save(place / "recipe.yaml")
        begun = time.monotonic()
        subprocess.run(command(place / "recipe.yaml", place / "whole"), check=True)
        runs = killed(place, given.kills, time.monotonic() - begun, random.Random(given.seed))
    report = {"recipe": recipe.to_dict(), "runs": runs, "kills": sum(len(run["kills"]) for run in runs),
              "exact": all(run["different"] is None for run in runs), "provenance": provenance()}  # fmt: skip
    write_json(given.out, report)
    print(f"{report['kills']} kills in {len(runs)} runs, {'exact' if report['exact'] else 'NOT exact'}: {given.out}")
    sys.exit(not report["exact"])


def killed(place: Path, count: int, seconds: float, rng: random.Random) -> list[dict[str, Any]]:
    """Runs until `count` kills are done and the last run is at its end. seconds: that a whole run takes."""
    runs: list[dict[str, Any]] = [{"kills": []}]
    left = count
    while True:
        out = place / f"broken-{len(runs)}"
        process = subprocess.Popen(
            command(place / "recipe.yaml", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        begun = time.monotonic()
        try:
            process.wait(timeout=rng.uniform(0.0, 0.9) * seconds if left else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            runs[-1] |= compared(place / "whole", out)
            if not left:
                return runs
            runs.append({"kills": []})
            continue
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the run failed by itself, with exit code {process.returncode}")
        left -= 1
        found = {"seconds": round(time.monotonic() - begun, 2), "saved update": saved_updates(out / "checkpoints")}
        runs[-1]["kills"].append(found)
        print(f"run {len(runs)}, killed after {found['seconds']} s, saved: {found['saved update']}", flush=True)


def compared(whole: Path, broken: Path) -> dict[str, Any]:
    """What differs between the ends of two runs, and how many clips each had drawn."""
    ends = [dict(leaves(load_state(checkpoints(run / "checkpoints")[-1]))) for run in (whole, broken)]
    drawn = [end["stream.consumed"] for end in ends]
    return {"different": first_difference(*ends), "compared": len(ends[0]), "clips drawn": drawn}


if __name__ == "__main__":
    main()
