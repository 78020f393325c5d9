"""Writes losses.json anew: run it only when a change of the losses is meant.

    PYTHONPATH=src:tests python tests/golden/make.py
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path

here = Path(__file__).parent
spec = importlib.util.spec_from_file_location("trainer_tests", here.parent / "training" / "test_trainer.py")
assert spec is not None
assert spec.loader is not None
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

golden = {}
with tempfile.TemporaryDirectory() as folder:
    for name in ("lcm", "mcm"):
        trainer, log = tests.make_trainer(Path(folder), Path(folder) / name, name, updates=3)
        trainer.run()
        golden[name] = {
            str(u): {k: round(v, 7) for k, v in n.items() if "/" not in k and "seconds" not in k} for u, n in log
        }
(here / "losses.json").write_text(json.dumps(golden, indent=1) + "\n")
