"""Several processes that train as one, called ranks: who they are, what they tell each other, how they end together.

Whatever starts them (torchrun, accelerate launch, srun) announces them in the environment: RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT. Weights are the same on every rank at all times (a full student's may be divided, see
`sharded`); each rank has its own micro-batches, and gradients and losses are averaged once an update.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from mcm.errors import SaidElsewhereError, UserError

logger = logging.getLogger(__name__)

BUCKET = 32 * 2**20  # numbers that travel in one message: fewer, larger messages are quicker; each costs a copy
POLL = 0.05  # seconds between two looks at the store
PATIENCE = 5.0  # seconds in which a rank that fails may tell why, before those that it left say that it is gone

_FAILED, _STOPPED = "mcm/failed", "mcm/stopped"
# How those who start processes say how many, each in its own words, where they do not say it in torch's.
_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}

_T = TypeVar("_T")


class LostRankError(UserError):
    """Another rank is gone, or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """This process among `world` others. The one of rank 0 is `main`: it alone writes.

    seconds: that a rank waits for the others' gradients and numbers.
    """

    rank: int = 0
    world: int = 1
    seconds: float = 600.0
    store: dist.Store | None = None
    _turns: Iterator[int] = field(default_factory=count, compare=False)

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world > 1

    # What they tell each other ------------------------------------------------------------------------------------

    def mean(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The means over ranks of numbers that every rank has by the same names; NaN where one rank has NaN."""
        if not self.several:
            return dict(numbers)
        told = torch.tensor(list(numbers.values()), dtype=torch.float64)
        self._heard(lambda: dist.all_reduce(told))
        return dict(zip(numbers, (told / self.world).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return self.most([int(flag)])[0] > 0

    def most(self, values: Sequence[int]) -> list[int]:
        """The largest of the ranks' values, place by place."""
        if not self.several:
            return list(values)
        told = torch.tensor(values, dtype=torch.int64)
        self._heard(lambda: dist.all_reduce(told, dist.ReduceOp.MAX))
        return told.tolist()

    def mean_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace the gradients of replicated weights by their means over ranks.

        A weight that other ranks reached and this one did not counts as zero here, as a micro-batch that does not reach
        it does in a single process; one that no rank reached stays without a gradient.
        """
        if not self.several or not weights:
            return
        reached = self.most([int(weight.grad is not None) for weight in weights])
        gradients = []
        for weight, somewhere in zip(weights, reached, strict=True):
            if somewhere:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                gradients.append(weight.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self._heard(lambda flat=flat: dist.all_reduce(flat))
            flat /= self.world
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def collective(self, call: Callable[[], _T]) -> _T:
        """What `call` gives, which talks to the other ranks itself. LostRankError where they do not answer."""
        return self._heard(call) if self.several else call()

    def _heard(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # how torch says that a peer is gone or silent; DistError is one of them
            raise LostRankError(
                f"another of the {self.world} ranks ended or gave no answer within {self.seconds:g} s "
                "(training.rank_timeout): look for its message, then run the same command again to go on "
                f"[{' '.join(str(error).split())[:160]}]"
            ) from error

    # Waiting for rank 0, however long it works ---------------------------------------------------------------------

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 goes through the block at once, the others after it has come out."""
        if self.main:
            yield
        self.follow()
        if not self.main:
            yield

    def follow(self) -> None:
        """Returns on every rank when rank 0 has come here. There is no limit: films and previews take their time."""
        if self.store is None:
            return
        turn = f"mcm/turn/{next(self._turns)}"
        if self.main:
            self.store.set(turn, "done")
            return
        while not self._known(turn):
            if self._known(_FAILED):
                raise LostRankError("rank 0 failed")
            if self._known(_STOPPED):
                raise KeyboardInterrupt
            time.sleep(POLL)

    def _known(self, key: str) -> bool:
        assert self.store is not None
        store = self.store
        return self._heard(lambda: store.check([key]))

    # The end ------------------------------------------------------------------------------------------------------

    def first_to_fail(self, patience: float = 0.0) -> bool:
        """Whether no other rank has told why the run fails; true for one rank only. patience: seconds to wait."""
        if self.store is None:
            return True
        until = time.monotonic() + patience
        try:
            while time.monotonic() < until and not self.store.check([_FAILED]):
                time.sleep(POLL)
            return self.store.add(_FAILED, 1) == 1
        except RuntimeError:  # the store lived in the process that is gone
            return True

    def stopped(self) -> None:
        """Tell those who follow that the user has stopped the run."""
        if self.store is not None:
            self.store.set(_STOPPED, "yes")


def announced() -> tuple[int, int]:
    """(rank, world) as the environment says; (0, 1) where it says nothing.

    UserError where it says only the half of it.
    """
    said = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if int(said["WORLD_SIZE"] or 1) < 2:
        return 0, 1
    missing = [name for name, value in said.items() if value is None]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {said['WORLD_SIZE']}, but {', '.join(missing)} is not set: start the ranks with "
            "torchrun --nproc-per-node N -m mcm distill RECIPE, which sets all of them, or unset WORLD_SIZE"
        )
    return int(said["RANK"] or 0), int(said["WORLD_SIZE"] or 1)


def alone_by_mistake() -> str | None:
    """What to say where several processes were asked for, but this one runs by itself; None where all is well."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    for name, launcher in _LAUNCHERS.items():
        if int(os.environ.get(name) or 1) > 1:
            return (
                f"{launcher} announces {os.environ[name]} processes ({name}), but not as torch wants it, so this one "
                "trains alone: start torchrun with it, once on every machine (docs/many-gpus.md)"
            )
    if "MASTER_ADDR" in os.environ and any(name.startswith("ACCELERATE_") for name in os.environ):
        return (
            "accelerate launch started ONE process; on the CPU it does so whatever --num_processes says. For more: "
            "torchrun --nproc-per-node N -m mcm distill RECIPE"
        )
    return None


class Joined:
    """A context: the ranks that the environment announces, connected; one rank where it announces none.

    A rank that fails ends all: the first one tells its reason as `rank 1 of 2: ...`, the others raise
    `SaidElsewhereError`. seconds: see `Ranks`; a rank that is missing at the start is waited for as long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ranks = seconds, Ranks()

    def __enter__(self) -> Ranks:
        rank, world = announced()
        if world == 1:
            if mistake := alone_by_mistake():
                logger.warning("%s", mistake)
            return self.ranks
        wait = timedelta(seconds=self.seconds)
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())))
            backend = "cpu:gloo,cuda:nccl"
        try:
            store, _, _ = next(rendezvous("env://", timeout=wait))
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
        except (RuntimeError, ValueError) as error:
            raise LostRankError(
                f"rank {rank} of {world}: not all {world} ranks came together at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']} within {self.seconds:g} s (training.rank_timeout): check that "
                f"as many were started, and that they reach that address [{' '.join(str(error).split())[:160]}]"
            ) from error
        self.ranks = Ranks(rank, world, self.seconds, store)
        return self.ranks

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        ranks = self.ranks
        if not ranks.several:
            return
        if error is None:
            dist.destroy_process_group()
        elif isinstance(error, KeyboardInterrupt):
            if not ranks.main:
                raise SaidElsewhereError("stopped", code=130) from error
            ranks.stopped()
        elif not ranks.first_to_fail(PATIENCE if isinstance(error, LostRankError) else 0.0):
            raise SaidElsewhereError(str(error)) from error
        elif isinstance(error, UserError):
            raise UserError(f"rank {ranks.rank} of {ranks.world}: {error}") from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, together of about `BUCKET` numbers."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
