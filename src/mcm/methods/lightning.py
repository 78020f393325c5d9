"""AnimateDiff-Lightning: progressive adversarial diffusion distillation (Lin & Yang, arXiv 2403.12706).

After SDXL-Lightning (Lin et al., arXiv 2402.13929). The student of each stage takes in one step what the last stage's
student takes in several: first from the guided teacher by mean squared error, which bakes guidance in, then, from few
steps to fewer, against a discriminator that is the teacher's own encoder, in two phases: told where the step began
(keep the trajectory), then not (the frames look better). Only the layers over time are trained. The last stage's
student waits in the averaged target's weights, which are replaced where a stage ends. Nothing but the discriminator
holds the student in the adversarial stages: there it learns at a share of its rate (`method.adversarial_rate`).

Over several base image models (`method.bases`, as the later paper does) the bases take turns by micro-batch: teacher,
student and target all have the one's spatial weights inside, and the discriminator is told which (`Batch.base`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mcm.adversarial import AdversarialLoss
from mcm.diffusion.paths import NoisePath, expand
from mcm.diffusion.solvers import euler_step
from mcm.errors import UserError
from mcm.methods.base import Batch, Method, Players, Turn, normal
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.guidance import guided
from mcm.models.video import VideoModel
from mcm.samplers.base import Sampler
from mcm.samplers.euler import Euler

FEWEST = (8, 4, 2, 1)  # steps of the adversarial stages, one after the other
RENOISED = (10, 250, 500, 750)  # times at which single clips are judged besides their own (after 2402.13929)


class Phase(NamedTuple):
    """steps: of the student's grid; of: of its teacher's, a multiple; objective: "mse", "conditional" or
    "unconditional"."""

    steps: int
    of: int
    objective: str


@dataclass(frozen=True)
class Lightning(Method):
    """One step of the student against several of the last stage's, by MSE and then by a discriminator."""

    name: ClassVar[str] = "animatediff-lightning"
    judge: ClassVar[str] = "encoder"
    over_bases: ClassVar[bool] = True
    own_defaults: ClassVar = {
        "motion": "raw", "adversary": "none", "adversarial_loss": "bce", "generated_probability": 0.0,
        "target_decay": 0.0, "solver_steps": 32, "adversarial_rate": 0.05,
    }  # fmt: skip

    def __post_init__(self) -> None:
        for setting, only in (("motion", "raw"), ("adversary", "none"), ("target_decay", 0.0)):
            if (given := getattr(self, setting)) != only:
                raise UserError(f'method "{self.name}" takes {setting} {only!r} alone, not {given!r}')
        if self.final_steps not in FEWEST:
            raise UserError(f"method.final_steps is {self.final_steps}: expected one of {', '.join(map(str, FEWEST))}")
        if self.solver_steps % FEWEST[0]:
            raise UserError(f"method.solver_steps is {self.solver_steps}: expected a multiple of {FEWEST[0]}")

    @property
    def phases(self) -> list[Phase]:
        """Every phase has an equal share of the run."""
        found, last = [Phase(self.solver_steps, 4 * self.solver_steps, "mse")], self.solver_steps
        for steps in FEWEST[: FEWEST.index(self.final_steps) + 1]:
            found += [Phase(steps, last, "conditional"), Phase(steps, last, "unconditional")]
            last = steps
        return found

    def phase(self, progress: float) -> Phase:
        phases = self.phases
        return phases[min(int(progress * len(phases) + 1e-9), len(phases) - 1)]

    @property
    def stages(self) -> tuple[float, ...]:
        """The one that bakes guidance in, then one for each number of steps."""
        phases = self.phases
        return tuple(k / len(phases) for k, phase in enumerate(phases) if phase.objective != "unconditional")

    def rate(self, player: str, progress: float) -> float:
        """Where no squared error holds it, the student may not run ahead of a discriminator that knows little yet."""
        alone = player == "temporal" and self.phase(progress).objective != "mse"
        return self.adversarial_rate if alone else 1.0

    @property
    def order(self) -> tuple[str, ...]:
        return ("temporal", "discriminator")

    def span(self, player: str) -> tuple[float, float]:
        return (1 / len(self.phases), 1.0) if player == "discriminator" else (0.0, 1.0)

    @property
    def heaviest(self) -> float:
        """In the first conditional phase: its discriminator sees the clips of before the step beside them."""
        return 1.5 / len(self.phases)

    def decay(self, progress: float, after: float) -> float | None:
        """0, the student itself becomes the teacher, where a stage ends."""
        return 0.0 if self.phase(progress).steps != self.phase(after).steps else None

    def check(self, model: VideoModel) -> None:
        model.denoiser.is_temporal("")

    def sampler(self) -> Sampler:
        return Euler()

    def turns(self, players: Players, batch: Batch, rng: torch.Generator) -> Iterator[Turn]:
        """The turn of the layers over time, then, in the adversarial phases, the discriminator's."""
        phase, path, student = self.phase(batch.progress), players.model.path, players.student
        times = Euler().times(path, phase.of)
        stride = phase.of // phase.steps
        start = stride * torch.randint(phase.steps, (len(batch.z0),), generator=rng)
        t, s = (times[start + k].to(batch.z0.device) for k in (0, stride))
        z_t = self.noisy(players, batch.z0, t, rng)
        wanted = self._teachers(players, z_t, [times[start + k].to(t) for k in range(stride + 1)], batch)
        with players.only("temporal"):
            made = euler_step(path, student.student(z_t, t, batch.text), t, s, z_t)
            if phase.objective == "mse":
                yield Turn("temporal", {"mse": F.mse_loss(made, wanted)})
                return
            discriminator = players.discriminator
            assert isinstance(discriminator, EncoderDiscriminator)
            loss = AdversarialLoss(self.adversarial_loss)
            before = (z_t, t) if phase.objective == "conditional" else None
            level, noise = self._level(path, s, rng), normal(z_t.shape, rng, z_t)

            def judged(z: Tensor) -> Tensor:
                if before is not None:
                    return discriminator(z, s, batch.text, before, batch.base)
                return discriminator(renoise(path, z, noise, s, level), level, batch.text, base=batch.base)

            with discriminator.frozen():
                logits = judged(made)
            yield Turn("temporal", {"adversarial": self.adversarial_weight * loss.generator(logits)})
        yield Turn("discriminator", {"discriminator": loss.discriminator(judged(wanted), judged(made.detach()))})

    @torch.no_grad()
    def _teachers(self, players: Players, z: Tensor, times: list[Tensor], batch: Batch) -> Tensor:
        """Where the last stage's student (the guided teacher at first) gets from z, step by step."""
        path, student = players.model.path, players.student
        scale = (self.guidance_min + self.guidance_max) / 2 + 1
        for a, b in itertools.pairwise(times):
            if self.phase(batch.progress).objective == "mse":
                said = guided(student.teacher, z, a, batch.text, batch.empty, scale)
            else:
                said = student.target(z, a, batch.text)
            z = euler_step(path, said, a, b, z)
        return z

    def _level(self, path: NoisePath, s: Tensor, rng: torch.Generator) -> Tensor:
        """For every clip its own time s, or a noisier one of `RENOISED`."""
        known = torch.tensor([0, *RENOISED]) * path.num_timesteps // 1000
        drawn = known[torch.randint(len(known), (len(s),), generator=rng)].to(s)
        return torch.maximum(drawn, s)


def renoise(path: NoisePath, z: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """z at times s (B,), brought to noisier times t >= s as the forward process does. -> (B, ...)"""
    keep = path.alpha(t) / path.alpha(s)
    added = (path.sigma(t).square() - (keep * path.sigma(s)).square()).clamp(min=0).sqrt()
    return expand(keep, z) * z + expand(added, z) * noise
