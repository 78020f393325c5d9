"""Guidance distillation (arXiv 2210.03142, stage one): one pass of the student for two of its guided teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mcm.diffusion.distances import l2
from mcm.methods.base import Batch, Method, Players, Turn, normal, uniform
from mcm.models.guidance import guided
from mcm.samplers.base import Sampler
from mcm.samplers.ddim import DDIM


@dataclass(frozen=True)
class GuidanceDistillation(Method):
    """|x0_student(z_t, t) - x0^w(z_t, t)|^2, w ~ U[guidance_min, guidance_max]."""

    name: ClassVar[str] = "guidance"
    own_defaults: ClassVar = {"motion": "raw", "adversary": "none", "generated_probability": 0.0}

    def sampler(self) -> Sampler:
        return DDIM()

    def turns(self, players: Players, batch: Batch, rng: torch.Generator) -> Iterator[Turn]:
        z0, student = batch.z0, players.student
        t = self.grid(players).draw(len(z0), rng)[0].to(z0.device)
        w = self.guidance_min + (self.guidance_max - self.guidance_min) * uniform(len(z0), rng, z0.device)
        z = players.model.path.diffuse(z0, normal(z0.shape, rng, z0), t)
        with torch.no_grad():
            wanted = guided(student.teacher, z, t, batch.text, batch.empty, w + 1).x0
        yield Turn("student", {"guidance": l2(student.student(z, t, batch.text).x0, wanted)})
