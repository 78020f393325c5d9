"""MCM: the Motion Consistency Model (Zhai et al., NeurIPS 2024, arXiv 2406.06890).

Consistency is asked of a motion representation alone (disentangled motion distillation, section 3.2), the look of
single frames comes from a frame adversary (section 3.2), and the noisy latents start from real and from the student's
own videos (mixed trajectory distillation, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mcm.diffusion.distances import pseudo_huber
from mcm.methods.base import Batch, Method, Players, Turn
from mcm.samplers.base import Sampler
from mcm.samplers.consistency import Consistency


@dataclass(frozen=True)
class MCM(Method):
    """d(phi(f_student(z_t, t)), phi_target(f_target(z_s, s))) plus the frame adversary, on mixed trajectories."""

    name: ClassVar[str] = "mcm"

    def sampler(self) -> Sampler:
        return Consistency(self.timestep_scaling, self.solver_steps, self.sigma_data)

    def turns(self, players: Players, batch: Batch, rng: torch.Generator) -> Iterator[Turn]:
        """The student's turn, then, with an adversary, the discriminator's."""
        z0 = self.own_clips(players, batch, rng)
        z_t, t, z_s, s = self.noisy_pair(players, z0, batch, rng)
        predicted = self.online(players, z_t, t, batch.text)
        wanted = self.target(players, z_s, s, batch.text)
        with torch.no_grad():
            wanted_motion = players.averaged_motion(wanted)
        losses = {"motion": pseudo_huber(players.motion(predicted), wanted_motion, self.huber_c)}
        if self.adversary == "none":
            yield Turn("student", losses)
            return
        frames = self.picked_frames(players, predicted, rng)
        yield Turn("student", losses | self.student_adversarial(players, frames, batch, rng))
        yield Turn("discriminator", self.discriminator_losses(players, frames, batch, rng))
