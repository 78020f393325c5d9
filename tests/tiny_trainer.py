"""A trainer on tiny teachers, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import torch
from stage import make_batch, make_players

from mcm.data.stream import Stream
from mcm.methods import method
from mcm.training.average import PowerAverage
from mcm.training.trainer import Plan, Schedule, Trainer


def make_trainer(teachers: Path, folder: Path, name: str = "mcm", updates: int = 4, accumulation: int = 1, **settings):
    log: list[tuple[int, dict[str, float]]] = []
    kind = settings.pop("kind", "lora")
    batch, width = settings.pop("batch", 2), settings.pop("average", None)
    chosen = method(name, **settings)
    players = make_players(teachers, chosen, kind=kind)
    optimizers, schedules = {}, {}
    for player in chosen.order:
        optimizers[player] = torch.optim.AdamW(list(players.parameters(player).values()), lr=1e-3)
        schedules[player] = Schedule(1e-3, 1, updates)
    trainer = Trainer(
        chosen, players, lambda index, rng: make_batch(players, index), Stream(6, batch, seed=1), optimizers, schedules,
        Plan(updates, accumulation, seed=7, save_every=2, log_every=1), folder,
        lambda update, numbers: log.append((update, numbers)),
        average=PowerAverage(players.student.trainable(), width) if width else None,
    )  # fmt: skip
    return trainer, log


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    parts = {f"{who}/{k}": p for who in trainer.method.order for k, p in trainer.players.parameters(who).items()}
    return {k: p.detach().clone() for k, p in parts.items()}
