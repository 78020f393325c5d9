"""Frames alone: the frame adversary without any distillation, the second stage of "distil first, then the frames".

The two-stage baseline that the Motion Consistency Model is compared with (arXiv 2406.06890, frame quality): a student
that is distilled already (`student.start`) learns the look of the pictures, and nothing holds its motion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mcm.errors import UserError
from mcm.methods.base import Batch, Method, Players, Turn
from mcm.samplers.base import Sampler
from mcm.samplers.consistency import Consistency


@dataclass(frozen=True)
class Frames(Method):
    """The adversary of single frames of f_student(z_t, t), alone."""

    name: ClassVar[str] = "frames"
    own_defaults: ClassVar = {"motion": "raw"}

    def __post_init__(self) -> None:
        if self.adversary == "none" or self.motion != "raw":
            raise UserError(
                f'method "frames" is the adversary alone: adversary "video" or "pictures" and motion "raw" expected, '
                f"not {self.adversary!r} and {self.motion!r}"
            )
        if self.adversarial_start:
            raise UserError(
                f'method "frames" is the adversary alone: adversarial_start 0 expected, not {self.adversarial_start:g}'
            )

    def sampler(self) -> Sampler:
        return Consistency(self.timestep_scaling, self.solver_steps, self.sigma_data)

    def turns(self, players: Players, batch: Batch, rng: torch.Generator) -> Iterator[Turn]:
        """The student's turn, then the discriminator's."""
        z0 = self.own_clips(players, batch, rng)
        t, _ = (x.to(z0.device) for x in self.grid(players).draw(len(z0), rng))
        z_t = self.noisy(players, z0, t, rng)
        frames = self.picked_frames(players, self.online(players, z_t, t, batch.text), rng)
        yield Turn("student", self.student_adversarial(players, frames, batch, rng))
        yield Turn("discriminator", self.discriminator_losses(players, frames, batch, rng))
