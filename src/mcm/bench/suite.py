"""What a bench measures: systems, equally budgeted, and how they are scored."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mcm.errors import UserError, nearest
from mcm.evaluation.report import Row
from mcm.recipe import Recipe
from mcm.recipes import load_recipe

GUIDANCE = "guidance"  # what a trial of a teacher's own sampler changes; a student's are settings of its recipe


@dataclass(frozen=True)
class System:
    """One line of the table.

    settings: of the teacher's recipe; none for the teacher's own `sampler`. of: the system whose student is sampled
    with `sampler`; nothing is trained for it. after: the system whose student it goes on from, a second budget after
    that one's. trials: changes to try, equally many for all; none for a system that is made with what was found for the
    system `like`, or as recipe and model usually are. by: the row's field that the best trial has least of. last:
    settings that go over what was found. share: of the budget. style: the pictures that its frames' FID is of. table:
    whether it is a line of the table itself. shape: frames and size (H, W) of its clips, where they are not the model's
    own; such a system has one number of steps. trial_steps, count: steps of its trials and clips of its cells, where
    they are not the suite's.
    """

    teacher: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sampler: str | None = None
    of: str | None = None
    after: str | None = None
    trials: Sequence[Mapping[str, Any]] = ()
    by: str = "fvd"
    like: str | None = None
    last: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, tuple[int, int]] | None = None
    steps: tuple[int, ...] = (1, 2, 4, 8)
    share: float = 1.0
    seed: int = 0
    style: str = "studio"
    table: bool = False
    part: str = ""
    trial_steps: int | None = None
    count: int | None = None

    @property
    def name(self) -> str:
        """Unique in its suite, and good for a folder: "pocket-animatediff.mcm", with part and training seed if any."""
        ending = (f".{self.part}" if self.part else "") + (f".seed{self.seed}" if self.seed else "")
        return f"{Path(self.teacher).name}.{self.method}{ending}"


class Scorer(Protocol):
    """What a suite brings to score with; see `mcm.pocket.scoring.Scoring`."""

    evaluator: Any

    def row(self, maker: Any, method: str, steps: int, sampler: str | None, guidance: float | None, **kept: Any) -> Row:
        """Make clips and score them."""
        ...


@dataclass(frozen=True)
class Suite:
    """Systems and their budget.

    recipes: by teacher; default the recipe of the teacher's name. updates: of a whole run; tuning: the share of them
    that a trial takes. count: clips a cell; trial_count: of a trial's, which is made in trial_steps. scorer(count,
    tuning, folder): see `Scorer`. shared: settings of every run. shown: prompts of the video wall.
    """

    name: str
    systems: tuple[System, ...]
    scorer: Callable[[int, bool, Path], Scorer]
    updates: int = 200
    tuning: float = 0.5
    count: int = 512
    trial_count: int = 128
    trial_steps: int = 4
    shown: tuple[str, ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    def recipe(self, teacher: str) -> Recipe:
        return self.recipes[teacher] if teacher in self.recipes else load_recipe(teacher)

    def chosen(self, only: Sequence[str] = ()) -> list[System]:
        """The systems whose names fit one of the patterns; all without any. UserError where nothing fits."""
        if not only:
            return list(self.systems)
        found = [s for s in self.systems if any(fnmatch.fnmatch(s.name, pattern) for pattern in only)]
        if not found:
            names = [s.name for s in self.systems]
            raise UserError(f"no system of the suite {self.name} fits {' '.join(only)}{nearest(only[0], names)}")
        return found

    def named(self, name: str) -> System:
        return next(s for s in self.systems if s.name == name)

    def depth(self, system: System) -> int:
        """How many systems must be there before it, one after the other: those that it is `like`, `after` or `of`."""
        before = (system.like, system.after, system.of)
        return max((1 + self.depth(self.named(name)) for name in before if name), default=0)


def suites() -> Iterator[str]:
    """Names of the suites that there are."""
    yield "pocket"


def suite(name: str) -> Suite:
    """The suite of that name; UserError for an unknown one."""
    if name not in suites():
        raise UserError(f"unknown suite {name!r}: expected {', '.join(suites())}{nearest(name, list(suites()))}")
    from mcm.pocket.suite import SUITE

    return SUITE
