"""Writes losses.json anew: run it only when a change of the losses is meant.

    PYTHONPATH=src:tests python tests/golden/make.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tiny_trainer import make_trainer

here = Path(__file__).parent
golden = {}
with tempfile.TemporaryDirectory() as folder:
    for name in ("lcm", "mcm"):
        trainer, log = make_trainer(Path(folder), Path(folder) / name, name, updates=3)
        trainer.run()
        golden[name] = {
            str(u): {k: round(v, 7) for k, v in n.items() if "/" not in k and "seconds" not in k} for u, n in log
        }
(here / "losses.json").write_text(json.dumps(golden, indent=1) + "\n")
