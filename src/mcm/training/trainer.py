"""The trainer: whose turn it is gets gradients, micro-batches are summed, then clip, step, average, log, save.

Every random number of update u comes from (seed, u), every batch from the stream's counter, and the learning rate
from u: with the state of weights, averages and optimizers, a checkpoint is the whole of a run, and an interrupted
run ends as an uninterrupted one does.

Of an update's micro-batches each rank takes every `world`-th, with the clips and random numbers that a single process
has there: however many ranks share them, an update is the same, and so is the run that goes on with more or fewer.

Where a loss or a gradient is NaN or infinite the run goes back to the last good checkpoint, or to its start, once. The
same update would fail in the same way, so every learning rate is half the schedule's from there to the end; the
checkpoint knows that. The second time the run stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from mcm.data.stream import Stream
from mcm.errors import UserError
from mcm.methods.base import Batch, Method, Players, Turn
from mcm.output import Progress, silent
from mcm.training.average import PowerAverage
from mcm.training.checkpoint import all_finite, copied, load_state, save_state
from mcm.training.device import autocast
from mcm.training.interrupt import StoppedTogether, held, together
from mcm.training.optimizers import clip, load_optimizer_state, optimizer_state, overflowed, replicated, scaler, step
from mcm.training.ranks import Ranks
from mcm.training.schedule import Plan, Schedule
from mcm.training.sharded import Sharded, divided, gathered, local

Material = Callable[[list[int], torch.Generator, int], Batch]  # of clips, for a base


class NotFiniteError(UserError):
    """A loss, the norm of a gradient, or the state that was to be saved is NaN or infinite; `what` names it."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class Trainer:
    """Runs a method's turns until the plan is done.

    optimizers, schedules: one for each player of `method.order`. log(update, numbers) is called every `log_every`
    updates; after_update(update) after every one (previews). line(numbers, seconds) makes the note of an update's
    numbers and of the seconds that updates take; rolled_back(update, words) is told that the run has gone back.
    average: follows the student's weights. ranks: who shares the updates; the stream must be this rank's. sharded: a
    full student's networks, where they are divided among ranks.
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
        log: Callable[[int, dict[str, float]], None] = lambda update, numbers: None,
        after_update: Callable[[int], None] = lambda update: None,
        progress: Progress = silent,
        line: Callable[[Mapping[str, float], float], str] = lambda numbers, seconds: losses(numbers),
        rolled_back: Callable[[int, str], None] = lambda update, words: None,
        average: PowerAverage | None = None,
        ranks: Ranks | None = None,
        sharded: Sharded | None = None,
    ) -> None:
        self.method, self.players, self.material, self.stream = method, players, material, stream
        self.optimizers, self.schedules, self.plan = optimizers, schedules, plan
        self.folder, self.log, self.after_update, self.progress = folder, log, after_update, progress
        self.line, self.rolled_back, self.average = line, rolled_back, average
        self.ranks, self.sharded = ranks or Ranks(), sharded
        self.scaler = scaler(plan.device, plan.precision)
        self.micro_batches = plan.accumulation * self.ranks.world  # of an update, all ranks' together
        self.update = 0
        self.rollbacks = 0  # each halves the learning rates
        self._beginning: dict[str, Any] | None = None

    # One update ---------------------------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """One update of every player; returns the losses, averaged over all micro-batches, and gradient norms."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        progress = self.update / self.plan.updates
        with self.sharded.whole() if self.sharded else nullcontext():
            numbers = self._gradients(progress)
        self._check_finite(numbers)
        for player, optimizer in self.optimizers.items():
            numbers |= self._clipped(player, optimizer)
        self._check_finite(numbers)
        for optimizer in self.optimizers.values():
            step(optimizer, self.scaler)
        self.scaler.update()
        self.players.average(self.method.decay(progress, (self.update + 1) / self.plan.updates), self.method.head_decay)
        self.update += 1
        if self.average is not None and (count := self.update - self._last_stage) > 0:
            self.average.update(count)
        return numbers

    @property
    def _last_stage(self) -> int:
        """Its first update."""
        return round(self.method.stages[-1] * self.plan.updates)

    def _gradients(self, progress: float) -> dict[str, float]:
        """The gradients of an update, each rank's micro-batches summed, then averaged over ranks; and the losses."""
        numbers: dict[str, float] = {}
        world, own = self.ranks.world, self.micro_batches // self.ranks.world
        self._elsewhere(self.ranks.rank)
        for turn_of_mine in range(own):
            micro = turn_of_mine * world + self.ranks.rank
            rng = torch.Generator().manual_seed(_seed(self.plan.seed, self.update, micro))
            # By the number of the run's micro-batch: the same, and each as often, however many ranks there are.
            base = self.players.base(self.update * self.micro_batches + micro)
            batch = self.material(self.stream.next_batch(), rng, base)._replace(progress=progress, base=base)
            if self.sharded:
                self.sharded.exchange(turn_of_mine == own - 1)
            with self.players.beneath(base):
                turns = self.method.turns(self.players, batch, rng)
                while (turn := self._next(turns)) is not None:
                    total = torch.stack([loss.float() for loss in turn.losses.values()]).sum()
                    scaled = self.scaler.scale(total / own)
                    self.ranks.collective(scaled.backward) if self.sharded else scaled.backward()
                    for name, loss in turn.losses.items():
                        numbers[name] = numbers.get(name, 0.0) + loss.item() / own
            self._elsewhere(world - 1 if turn_of_mine < own - 1 else world - 1 - self.ranks.rank)
        for player in self.optimizers:
            self.ranks.mean_gradients(replicated(self.players.parameters(player).values()))
        return self.ranks.mean(numbers)

    def _elsewhere(self, count: int) -> None:
        """What micro-batches of other ranks change besides gradients."""
        with autocast(self.plan.device, self.plan.precision):
            self.method.elsewhere(self.players, count)

    def _clipped(self, player: str, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Clip a player's gradients and set its rate. -> its numbers; a norm of 0 where float16 overflowed."""
        self.scaler.unscale_(optimizer)
        weights = list(self.players.parameters(player).values())
        norm = self.ranks.collective(lambda: clip(weights, self.plan.clip))
        share = self.method.rate(player, self.update / self.plan.updates)
        rate = share * self.schedules[player](self.update) / 2**self.rollbacks
        for group in optimizer.param_groups:
            group["lr"] = rate
        return {f"gradient/{player}": 0.0 if overflowed(norm, self.scaler) else norm, f"rate/{player}": rate}

    def _next(self, turns: Iterator[Turn]) -> Turn | None:
        """The next turn, its forward passes made in the run's precision."""
        with autocast(self.plan.device, self.plan.precision):
            return next(turns, None)

    def _check_finite(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise self._stopped(f"{name} is {value}")

    def _check_weights(self) -> None:
        if self.ranks.any(not all_finite(local(self._state()))):
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
        if saved := self._newest():
            self.load_state_dict(load_state(saved))
        else:
            self._beginning = copied(self.state_dict())  # to go back to until there is a checkpoint
        with together(self.ranks.any) if self.ranks.several else nullcontext(lambda: None) as stop_together:
            self._run(stop_together)

    def _run(self, stop_together: Callable[[], None]) -> None:
        recent: dict[str, float] = {}
        since, counted, between = time.monotonic(), 0, True
        try:
            while self.update < self.plan.updates:
                between = False
                with held():
                    numbers = self._step_or_back()
                    between = True
                stop_together()
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
        except KeyboardInterrupt as stop:
            # Half an update is no state to go on from, nor is what one rank alone would save.
            if between and (isinstance(stop, StoppedTogether) or not self.ranks.several):
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
        failed, saved = self.update, self._newest()
        state = load_state(saved) if saved else self._beginning
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
        """The whole of the run as a tree of tensors and numbers, the same on every rank; all must ask together."""
        return self.ranks.collective(lambda: gathered(self._state()))

    def _state(self) -> dict[str, Any]:
        """As `state_dict`; of divided tensors this rank's parts."""
        players = self.players
        return {
            "update": self.update,
            "rollbacks": self.rollbacks,
            "micro_batches": self.micro_batches,
            "stream": self.stream.state_dict(),
            "scaler": self.scaler.state_dict(),
            "student": players.student.state_dict(),
            "motion": players.motion.state_dict(),
            "averaged_motion": players.averaged_motion.state_dict(),
            "discriminator": players.discriminator.state_dict() if players.discriminator is not None else {},
            "average": self.average.state_dict() if self.average is not None else {},
            "optimizers": {name: optimizer_state(o) for name, o in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave, by however many ranks. UserError where these cannot share an update evenly."""
        players = self.players
        self.update = state["update"]
        self.rollbacks = state.get("rollbacks", 0)  # earlier checkpoints do not say
        self.micro_batches = state.get("micro_batches", self.micro_batches)
        if self.micro_batches % self.ranks.world:
            raise UserError(
                f"an update of this run has {self.micro_batches} micro-batches (training.accumulation times ranks), "
                f"which {self.ranks.world} ranks cannot share evenly: go on with a number of ranks that divides it"
            )
        self.stream.load_state_dict(state["stream"])
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        players.student.load_state_dict(divided(state["student"], players.student.state_dict()))
        players.motion.load_state_dict(state["motion"])
        players.averaged_motion.load_state_dict(state["averaged_motion"])
        if players.discriminator is not None:
            players.discriminator.load_state_dict(state["discriminator"])
        if self.average is not None:
            self.average.load_state_dict(divided(state["average"], self.average.state_dict()))
        for name, optimizer in self.optimizers.items():
            load_optimizer_state(optimizer, state["optimizers"][name])

    def save(self) -> Path:
        """Write a checkpoint and remove the oldest beyond `keep`. A failed save stops the run with its error.

        NotFiniteError where a weight is broken: every checkpoint is good.
        """
        self._check_weights()
        path, state = self.folder / f"update-{self.update:07d}.safetensors", self.state_dict()
        self._beginning = None
        if self.ranks.main:
            save_state(path, state)
            for old in checkpoints(self.folder)[: -self.plan.keep]:
                old.unlink(missing_ok=True)
        self.ranks.follow()
        return path

    def _newest(self) -> Path | None:
        """The newest checkpoint. UserError where ranks do not see the same one."""
        seen = saved_updates(self.folder)
        if self.ranks.several:
            most, least = self.ranks.most([seen, -seen])
            if most != -least:
                raise UserError(
                    f"the ranks see different checkpoints in {self.folder} (updates {-least} and {most}): --out must "
                    "be a folder that all machines share"
                )
        saved = checkpoints(self.folder)
        return saved[-1] if saved else None


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
