"""LCM: video latent consistency distillation, the paper's baseline (MCM section 3.1; LCM, arXiv 2310.04378).

With an adversary it is the paper's "baseline + frames", in which the two objectives pull against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mcm.diffusion.distances import pseudo_huber
from mcm.errors import UserError
from mcm.methods.base import Batch, Method, Players, Turn
from mcm.samplers.base import Sampler
from mcm.samplers.consistency import Consistency


@dataclass(frozen=True)
class LCM(Method):
    """d(f_student(z_t, t), f_target(z_s, s)) on the latents themselves, on real videos."""

    name: ClassVar[str] = "lcm"
    own_defaults: ClassVar = {"motion": "raw", "adversary": "none", "generated_probability": 0.0}

    def __post_init__(self) -> None:
        if self.motion != "raw":
            raise UserError(
                f'method "lcm" compares the latents themselves; motion {self.motion!r} belongs to method "mcm"'
            )

    def sampler(self) -> Sampler:
        return Consistency(self.timestep_scaling, self.solver_steps, self.sigma_data)

    def turns(self, players: Players, batch: Batch, rng: torch.Generator) -> Iterator[Turn]:
        """The student's turn, then, with an adversary, the discriminator's."""
        z_t, t, z_s, s = self.noisy_pair(players, batch.z0, batch, rng)
        predicted = self.online(players, z_t, t, batch.text)
        wanted = self.target(players, z_s, s, batch.text)
        losses = {"consistency": pseudo_huber(predicted, wanted, self.huber_c)}
        if self.adversary == "none":
            yield Turn("student", losses)
            return
        frames = self.picked_frames(players, predicted, rng)
        yield Turn("student", losses | self.student_adversarial(players, frames, batch, rng))
        yield Turn("discriminator", self.discriminator_losses(players, frames, batch, rng))
