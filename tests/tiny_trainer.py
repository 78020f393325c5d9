"""A trainer on tiny teachers, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import torch
from stage import make_batch, make_players

from mcm.data.stream import Stream
from mcm.methods import method
from mcm.recipe import OptimConfig
from mcm.training.average import PowerAverage
from mcm.training.optimizers import make_optimizer
from mcm.training.ranks import Ranks
from mcm.training.sharded import Sharded
from mcm.training.trainer import Plan, Schedule, Trainer


def make_trainer(teachers: Path, folder: Path, name: str = "mcm", updates: int = 4, accumulation: int = 1, **settings):
    log: list[tuple[int, dict[str, float]]] = []
    kind = settings.pop("kind", "lora")
    batch = settings.pop("batch", 2)
    ranks = settings.pop("ranks", Ranks())
    rate = settings.pop("rate", 1e-3)
    width = settings.pop("average", None)
    chosen = method(name, **settings)
    players = make_players(teachers, chosen, kind=kind)
    sharded = None
    if ranks.several and kind == "full":
        own = [d.network for d in players.student.denoisers() if d is not players.model.denoiser]
        sharded = Sharded(own, torch.device("cpu"), ranks)
    optimizers, schedules = {}, {}
    for player in chosen.order:
        weights = list(players.parameters(player).values())
        divided = sharded is not None and player != "discriminator"
        optimizers[player] = make_optimizer(OptimConfig(), weights, rate, divided)
        schedules[player] = Schedule(rate, 1, updates)
    trainer = Trainer(
        chosen, players, lambda index, rng, base: make_batch(players, index),
        Stream(6, batch, seed=1, rank=ranks.rank, world=ranks.world), optimizers, schedules,
        Plan(updates, accumulation, seed=7, save_every=2, log_every=1), folder,
        lambda update, numbers: log.append((update, numbers)), ranks=ranks, sharded=sharded,
        average=PowerAverage(players.student.trainable(), width) if width else None,
    )  # fmt: skip
    return trainer, log


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    parts = {f"{who}/{k}": p for who in trainer.method.order for k, p in trainer.players.parameters(who).items()}
    return {k: p.detach().clone() for k, p in parts.items()}
