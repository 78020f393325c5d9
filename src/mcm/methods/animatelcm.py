"""AnimateLCM: decoupled consistency learning (Wang et al., arXiv 2402.00769).

First the layers within a frame learn consistency from pictures, with the picture model that the teacher was built on;
then, with those fixed, the layers over time learn it from videos. The distilled spatial
layers enter the student at once, but the averaged target only through its average, so that it does not jump while the
layers over time still know the undistilled ones. The teacher stays as it was.

For the AnimateDiff family: it alone has a picture model inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mcm.diffusion.distances import pseudo_huber
from mcm.errors import UserError
from mcm.methods.base import Batch, Method, Players, Turn
from mcm.models.guidance import Denoise
from mcm.models.video import VideoModel
from mcm.samplers.base import Sampler
from mcm.samplers.consistency import Consistency


@dataclass(frozen=True)
class AnimateLCM(Method):
    """d(f_student(z_t, t), f_target(z_s, s)) on single frames, then on videos."""

    name: ClassVar[str] = "animatelcm"
    own_defaults: ClassVar = {
        "motion": "raw", "adversary": "none", "generated_probability": 0.0, "target_decay": 0.95,
    }  # fmt: skip

    def __post_init__(self) -> None:
        for setting, only in (("motion", "raw"), ("adversary", "none")):
            if (given := getattr(self, setting)) != only:
                raise UserError(
                    f'method "animatelcm" takes {setting} {only!r} alone; {given!r} belongs to method "mcm"'
                )
        if self.target_decay is None:
            raise UserError(
                'method "animatelcm" needs an averaged target: set method.target_decay to a number below 1, like 0.95'
            )

    @property
    def order(self) -> tuple[str, ...]:
        return ("spatial", "temporal")

    def span(self, player: str) -> tuple[float, float]:
        return (0.0, self.picture_share) if player == "spatial" else (self.picture_share, 1.0)

    def decay(self, progress: float, after: float) -> float | None:
        """While pictures teach, the target's weights wait as the teacher's."""
        return None if progress < self.picture_share else self.target_decay

    def sampler(self) -> Sampler:
        return Consistency(self.timestep_scaling, self.solver_steps, self.sigma_data)

    def check(self, model: VideoModel) -> None:
        with model.denoiser.pictures():
            return

    def turns(self, players: Players, batch: Batch, rng: torch.Generator) -> Iterator[Turn]:
        """A turn of the spatial layers on one frame of every clip, or one of the temporal layers on the clips."""
        student = players.student
        if batch.progress < self.picture_share:
            with student.pictures(), players.only("spatial"):
                z0 = one_frame(batch.z0, rng)
                yield Turn("spatial", self._losses(players, student.student, z0, batch, rng))
        else:
            with players.only("temporal"):
                yield Turn("temporal", self._losses(players, student.target, batch.z0, batch, rng))

    def _losses(
        self, players: Players, target: Denoise, z0: Tensor, batch: Batch, rng: torch.Generator
    ) -> dict[str, Tensor]:
        z_t, t, z_s, s = self.noisy_pair(players, z0, batch, rng)
        predicted = self.online(players, z_t, t, batch.text)
        wanted = self.settled(target, z_s, s, batch.text)
        return {"consistency": pseudo_huber(predicted, wanted, self.huber_c)}


def one_frame(z: Tensor, rng: torch.Generator) -> Tensor:
    """A drawn frame of every clip, as a clip of one frame: (B, C, T, h, w) -> (B, C, 1, h, w)."""
    moment = torch.randint(z.shape[2], (len(z),), generator=rng).to(z.device)
    return z[torch.arange(len(z), device=z.device), :, moment].unsqueeze(2)
