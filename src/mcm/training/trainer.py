"""The trainer: whose turn it is gets gradients, micro-batches are summed, then clip, step, average, log, save.

Every random number of update u comes from (seed, u), every batch from the stream's counter, and the learning rate
from u: with the state of weights, averages and optimizers, a checkpoint is the whole of a run, and an interrupted
run ends as an uninterrupted one does.

Where a loss or a gradient is NaN or infinite the run goes back to the last good checkpoint, or to its start, once. The
same update would fail in the same way, so every learning rate is half the schedule's from there to the end; the
checkpoint knows that. The second time the run stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcm.data.stream import Stream
from mcm.errors import UserError
from mcm.methods.base import Batch, Method, Players, Turn
from mcm.output import Progress, silent
from mcm.training.average import PowerAverage
from mcm.training.checkpoint import all_finite, copied, load_state, save_state
from mcm.training.device import autocast
from mcm.training.interrupt import held

Material = Callable[[list[int], torch.Generator], Batch]


class NotFiniteError(UserError):
    """A loss, the norm of a gradient, or the state that was to be saved is NaN or infinite; `what` names it."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


@dataclass(frozen=True)
class Schedule:
    """Learning rate of an update: linear warm-up, then constant or half a cosine down to a hundredth.

    begin: the first update of the player that it is for; updates: how many are its own.
    """

    rate: float
    warmup: int
    updates: int
    shape: str = "cosine"
    begin: int = 0

    def __call__(self, update: int) -> float:
        update = max(0, update - self.begin)
        warm = min(1.0, (update + 1) / (self.warmup + 1))
        if self.shape == "constant":
            return self.rate * warm
        progress = min(1.0, max(0.0, (update - self.warmup) / max(1, self.updates - self.warmup)))
        return self.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Plan:
    """How long and how: the trainer's part of a recipe.

    updates: optimizer steps of the student; accumulation: micro-batches summed for one; save_every, keep: updates
    between checkpoints and how many are kept; log_every: updates between lines of the log; seed: of everything;
    precision: "fp32" or "bf16", of forward passes on `device`.
    """

    updates: int
    accumulation: int = 1
    clip: float = 10.0
    seed: int = 0
    save_every: int = 100
    keep: int = 2
    log_every: int = 10
    precision: str = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Trainer:
    """Runs a method's turns until the plan is done.

    optimizers, schedules: one for each player of `method.order`. log(update, numbers) is called every `log_every`
    updates; after_update(update) after every one (previews). line(numbers, seconds) makes the note of an update's
    numbers and of the seconds that updates take; rolled_back(update, words) is told that the run has gone back.
    average: follows the student's weights; its values are part of the run's state.
    """

    def __init__(
        self,
        method: Method,
        players: Players,
        material: Material,
        stream: Stream,
        optimizers: dict[str, torch.optim.Optimizer],
        schedules: dict[str, Schedule],
        plan: Plan,
        folder: Path,
        log: Callable[[int, dict[str, float]], None],
        after_update: Callable[[int], None] = lambda update: None,
        progress: Progress = silent,
        line: Callable[[Mapping[str, float], float], str] = lambda numbers, seconds: losses(numbers),
        rolled_back: Callable[[int, str], None] = lambda update, words: None,
        average: PowerAverage | None = None,
    ) -> None:
        self.method, self.players, self.material, self.stream = method, players, material, stream
        self.optimizers, self.schedules, self.plan = optimizers, schedules, plan
        self.folder, self.log, self.after_update, self.progress = folder, log, after_update, progress
        self.line, self.rolled_back, self.average = line, rolled_back, average
        self.update = 0
        self.rollbacks = 0  # each halves the learning rates
        self._beginning: dict[str, Any] | None = None

    # One update ---------------------------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """One update of every player; returns the losses, averaged over the micro-batches, and gradient norms."""
        numbers: dict[str, float] = {}
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        progress = self.update / self.plan.updates
        for micro in range(self.plan.accumulation):
            rng = torch.Generator().manual_seed(_seed(self.plan.seed, self.update, micro))
            batch = self.material(self.stream.next_batch(), rng)._replace(progress=progress)
            turns = self.method.turns(self.players, batch, rng)
            while (turn := self._next(turns)) is not None:
                total = torch.stack([loss.float() for loss in turn.losses.values()]).sum()
                (total / self.plan.accumulation).backward()
                for name, loss in turn.losses.items():
                    numbers[name] = numbers.get(name, 0.0) + loss.item() / self.plan.accumulation
        self._check_finite(numbers)
        for player, optimizer in self.optimizers.items():
            weights = list(self.players.parameters(player).values())
            norm = nn.utils.clip_grad_norm_(weights, self.plan.clip)
            numbers[f"gradient/{player}"] = float(norm)
            rate = self.schedules[player](self.update) / 2**self.rollbacks
            for group in optimizer.param_groups:
                group["lr"] = rate
            numbers[f"rate/{player}"] = rate
        self._check_finite(numbers)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.players.average(self.method.decay(progress, (self.update + 1) / self.plan.updates), self.method.head_decay)
        self.update += 1
        if self.average is not None:
            self.average.update(self.update)
        return numbers

    def _next(self, turns: Iterator[Turn]) -> Turn | None:
        """The next turn, its forward passes made in the run's precision."""
        with autocast(self.plan.device, self.plan.precision):
            return next(turns, None)

    def _check_finite(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise self._stopped(f"{name} is {value}")

    def _check_weights(self) -> None:
        if not all_finite(self.state_dict()):
            raise self._stopped("a weight is nan or infinite")

    def _stopped(self, what: str) -> NotFiniteError:
        again = ", again, with half the learning rates" if self.rollbacks else ""
        return NotFiniteError(
            what,
            f"training stopped at update {self.update}: {what}{again}; the checkpoints in {self.folder} are good; "
            "lower optim.lr or optim.clip and start again in another folder",
        )

    # The run ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go on from the newest checkpoint, if there is one, to the end of the plan.

        A keyboard interrupt waits for the end of the update and saves, so that the same command goes on where it was; a
        second one stops at once, and the last checkpoint is where it goes on.
        """
        if saved := checkpoints(self.folder):
            self.load_state_dict(load_state(saved[-1]))
        else:
            self._beginning = copied(self.state_dict())  # to go back to until there is a checkpoint
        recent: dict[str, float] = {}
        since, counted, between = time.monotonic(), 0, True
        try:
            while self.update < self.plan.updates:
                between = False
                with held():
                    numbers = self._step_or_back()
                    between = True
                if numbers is None:
                    recent, since, counted = {}, time.monotonic(), 0
                    continue
                last = self.update == self.plan.updates
                for name, value in numbers.items():
                    recent[name] = recent.get(name, 0.0) + value
                counted += 1
                seconds = (time.monotonic() - since) / counted
                if self.update % self.plan.log_every == 0 or last:
                    means = {name: value / counted for name, value in recent.items()}
                    self.log(self.update, {**means, "seconds per update": seconds})
                    recent, since, counted = {}, time.monotonic(), 0
                self.progress("distilling", self.update, self.plan.updates, self.line(numbers, seconds))
                if self.update % self.plan.save_every == 0 or last:
                    self.save()
                self.after_update(self.update)
        except KeyboardInterrupt:
            if between:  # half an update is no state to go on from: then the last checkpoint is
                self.save()
            raise

    def _step_or_back(self) -> dict[str, float] | None:
        """One update, its state good where it is to be saved; None where the run has gone back instead."""
        try:
            numbers = self.step()
            if self.update == self.plan.updates or self.update % self.plan.save_every == 0:
                self._check_weights()
        except NotFiniteError as found:
            if self.rollbacks:
                raise
            self._roll_back(found)
            return None
        return numbers

    def _roll_back(self, found: NotFiniteError) -> None:
        """To the newest checkpoint, else to the start; saved, so that a run that goes on knows that it was there."""
        failed, saved = self.update, checkpoints(self.folder)
        state = load_state(saved[-1]) if saved else self._beginning
        if state is None:
            raise found
        self.load_state_dict(state)
        self.rollbacks += 1
        self.save()
        self.rolled_back(
            self.update,
            f"{found.what} at update {failed}, so the run went back to update {self.update} and goes on with half the "
            "learning rates; if it happens again it stops: then lower optim.lr or optim.clip",
        )

    # State --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The whole of the run as a tree of tensors and numbers."""
        players = self.players
        return {
            "update": self.update,
            "rollbacks": self.rollbacks,
            "stream": self.stream.state_dict(),
            "student": players.student.state_dict(),
            "motion": players.motion.state_dict(),
            "averaged_motion": players.averaged_motion.state_dict(),
            "discriminator": players.discriminator.state_dict() if players.discriminator is not None else {},
            "average": self.average.state_dict() if self.average is not None else {},
            "optimizers": {name: _by_name(o.state_dict()) for name, o in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        players = self.players
        self.update = state["update"]
        self.rollbacks = state.get("rollbacks", 0)  # earlier checkpoints do not say
        self.stream.load_state_dict(state["stream"])
        players.student.load_state_dict(state["student"])
        players.motion.load_state_dict(state["motion"])
        players.averaged_motion.load_state_dict(state["averaged_motion"])
        if players.discriminator is not None:
            players.discriminator.load_state_dict(state["discriminator"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def save(self) -> Path:
        """Write a checkpoint and remove the oldest beyond `keep`. A failed save stops the run with its error.

        NotFiniteError where a weight is broken: every checkpoint is good.
        """
        self._check_weights()
        path = self.folder / f"update-{self.update:07d}.safetensors"
        save_state(path, self.state_dict())
        self._beginning = None
        for old in checkpoints(self.folder)[: -self.plan.keep]:
            old.unlink(missing_ok=True)
        return path


def losses(numbers: Mapping[str, float]) -> str:
    """The losses among the numbers of an update, for people."""
    return "  ".join(f"{name} {value:.4f}" for name, value in numbers.items() if "/" not in name)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("update-*.safetensors"))


def saved_updates(folder: Path) -> int:
    """The update of the newest checkpoint, 0 where there is none."""
    return int(found[-1].stem.removeprefix("update-")) if (found := checkpoints(folder)) else 0


def _seed(seed: int, update: int, micro: int) -> int:
    """A seed of its own for every micro-batch of every update (torch takes 64 bits; splitmix-style mixing)."""
    x = (seed * 0x9E3779B97F4A7C15 + update * 0xBF58476D1CE4E5B9 + micro * 0x94D049BB133111EB) & (2**63 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**63 - 1)
    return x ^ (x >> 27)


def _by_name(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state without what the recipe says anyway (a None or a callable cannot be stored)."""
    plain = (int, float, bool, str, list, tuple, Tensor, type(None))
    groups = [{k: v for k, v in group.items() if isinstance(v, plain)} for group in state["param_groups"]]
    return {"state": state["state"], "param_groups": groups}
