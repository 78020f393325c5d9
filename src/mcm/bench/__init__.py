"""Many distillations, one table: a suite of systems, tuned alike, trained alike, scored alike.

    bench(suite("pocket"), "runs/bench")

A suite says what the systems are; see `mcm.pocket.suite`. Every system takes the same way: each of its trials (equally
many for all) is made at a part of the budget and scored on the tuning prompts, the best one is made at the whole
budget and scored on held-out prompts with seeds of their own.
"""

from mcm.bench.run import Bench, bench, together
from mcm.bench.suite import GUIDANCE, Scorer, Suite, System, suite

__all__ = ["GUIDANCE", "Bench", "Scorer", "Suite", "System", "bench", "suite", "together"]
