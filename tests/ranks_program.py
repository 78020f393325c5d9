"""What the tests of ranks run on every rank: torchrun --nproc-per-node N ranks_program.py TEACHERS FOLDER TRIAL...

Each trial trains in FOLDER/TRIAL. Rank 0 leaves gradients of the first update, losses and the end state
in FOLDER/TRIAL.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tiny_trainer import make_trainer
from torch.distributed.tensor import DTensor

from mcm.training.checkpoint import save_state
from mcm.training.ranks import Joined, Ranks
from mcm.training.trainer import Trainer

MICRO_BATCHES = 4  # of an update, whoever shares them
QUICK = {"generated_probability": 0.0}  # no clips of the student's own
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"updates": 3, **QUICK},
    "long": {"updates": 10, **QUICK},
    "full": {"updates": 2, "kind": "full", "target_decay": 0.9},
    "full-long": {"updates": 10, "kind": "full", "target_decay": 0.9},
    "broken": {"updates": 3, **QUICK},
    "resumed": {"updates": 3, **QUICK},
    # Three bases for four micro-batches: no rank sees the same one in every update.
    "bases": {"updates": 3, "name": "animatediff-lightning", "rate": 1e-4},
}
LOOKS = ("look", "second")  # LoRAs in the folder of the teachers


class Stopped(Exception):  # noqa: N818 (no error)
    """The trial ends early."""


def make(teachers: Path, folder: Path, trial: str, ranks: Ranks) -> tuple[Trainer, list[Any]]:
    share = MICRO_BATCHES // ranks.world
    settings = dict(SETTINGS[trial])
    if trial == "bases":
        settings["bases"] = ("teacher", *(str(teachers / look) for look in LOOKS))
    trainer, log = make_trainer(teachers, folder / trial, accumulation=share, batch=1, ranks=ranks, **settings)
    for optimizer in trainer.optimizers.values():
        # AdamW divides by the gradient's size: by 1e-8 where it is 0 but for rounding (a bias before a norm), and then
        # the last bits decide where such a weight goes.
        optimizer.param_groups[0]["eps"] = 1e-5
    return trainer, log


def run(teachers: Path, folder: Path, trial: str, ranks: Ranks, stop: int | None = None) -> None:
    trainer, log = make(teachers, folder, trial, ranks)
    gradients: dict[str, torch.Tensor] = {}

    def keep(player: str) -> None:
        for name, weight in trainer.players.parameters(player).items():
            if weight.grad is not None and trainer.update == 0:
                whole = weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad
                gradients[f"{player}/{name}"] = whole.clone()

    for player, optimizer in trainer.optimizers.items():
        optimizer.register_step_pre_hook(lambda *_, player=player: keep(player))

    def after(update: int) -> None:
        if update == trainer.plan.updates:
            state = trainer.state_dict()
            if ranks.main:
                found = {"state": state, "gradients": gradients, "losses": log}
                save_state(folder / f"{trial}.safetensors", found)
        if update == stop:
            raise Stopped

    trainer.after_update = after
    if trial == "broken":
        material = trainer.material

        def broken(index: list[int], rng: torch.Generator, base: int) -> object:
            batch = material(index, rng, base)
            last = trainer.update == 2 and trainer.rollbacks == 0 and ranks.rank == ranks.world - 1
            return batch._replace(z0=batch.z0 * float("nan")) if last else batch

        trainer.material = broken  # pyright: ignore[reportAttributeAccessIssue]
    try:
        trainer.run()
    except Stopped:
        return


if __name__ == "__main__":
    with Joined(120) as joined:
        for argument in sys.argv[3:]:  # TRIAL or TRIAL:UPDATE, where it is to stop
            name, _, last = argument.partition(":")
            run(Path(sys.argv[1]), Path(sys.argv[2]), name, joined, int(last) if last else None)
