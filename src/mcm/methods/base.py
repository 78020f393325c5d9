"""What every distillation method is, and the pieces of a training step that methods share.

A method's `turns` yields the losses of one training step, a player at a time, and reads top to bottom like the
paper's equations. It never touches gradients or optimizers: the trainer does. Each turn's losses reach only its own
player's weights: the discriminator is frozen in the student's turn and sees detached frames in its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcm.adversarial import AdversarialLoss, gradient_penalty
from mcm.diffusion.consistency import ConsistencyFunction
from mcm.diffusion.grid import SolverGrid
from mcm.diffusion.paths import Denoised, expand
from mcm.diffusion.solvers import ddim_step, midpoint_step
from mcm.methods.players import Batch, Players, Turn
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.guidance import Denoise, guided
from mcm.models.video import TextEmbedding, VideoModel
from mcm.samplers.base import Sampler
from mcm.samplers.loop import sample


@dataclass(frozen=True)
class Method(ABC):
    """A distillation method: a frozen dataclass whose fields are the paper's symbols.

    solver_steps N; solver: the teacher's step from t to s, "ddim" or, of second order at twice the passes, "midpoint"
    (for coarse grids); zero_terminal_snr: whether trajectories start from pure noise, as generation does; guidance
    w ~ U[guidance_min, guidance_max] (diffusers' guidance_scale is w + 1); sigma_data d and
    timestep_scaling k of the consistency function; huber_c c; motion: name of phi; adversary: "none", "video" or
    "pictures", where the discriminator's real frames come from; adversarial_start: share of the run that it learns
    before the student hears it; matching_weight: of real frames under other captions than theirs, 0 for none;
    frames_picked K; generated_probability lambda; generated_ramp: share of the run over
    which lambda rises from 0, for the first own clips are worth nothing; target_decay: of the averaged target, None for
    the student itself; head_decay: of the averaged motion head; picture_share: share of the updates that go to pictures
    first, of methods in stages; final_steps: the fewest steps, of progressive ones; adversarial_rate: share of the
    student's learning rate where an adversary alone teaches it; bases: names of the image models
    that it trains on in turn, none for the teacher's own alone.
    """

    name: ClassVar[str]
    # The setting's values that make the method what it is, where they differ from the defaults below.
    own_defaults: ClassVar[dict[str, Any]] = {}
    # What the discriminator sees: "frames" (where there is an adversary), or the "encoder" sees latent clips.
    judge: ClassVar[str] = "frames"
    # Whether it can train on several base image models in turn: it must leave the spatial layers alone.
    over_bases: ClassVar[bool] = False

    solver_steps: int = 50
    solver: str = "ddim"
    zero_terminal_snr: bool = False
    guidance_min: float = 5.0
    guidance_max: float = 15.0
    sigma_data: float = 0.5
    timestep_scaling: float = 4.0
    huber_c: float = 1e-3
    motion: str = "learnable"
    adversary: str = "video"
    adversarial_loss: str = "hinge"
    adversarial_weight: float = 1.0
    gradient_penalty: float = 1e-5
    matching_weight: float = 0.0
    adversarial_start: float = 0.0
    frames_picked: int = 2
    generated_probability: float = 0.5
    generated_ramp: float = 0.0
    trajectory: str = "one-step"
    trajectory_steps: int = 4
    target_decay: float | None = None
    head_decay: float = 0.95
    picture_share: float = 0.5
    final_steps: int = 4
    adversarial_rate: float = 1.0
    bases: tuple[str, ...] = ()

    @abstractmethod
    def turns(self, players: Players, batch: Batch, rng: torch.Generator) -> Iterator[Turn]:
        """The losses of one training step, one player after the other, in the order of `order`."""

    @abstractmethod
    def sampler(self) -> Sampler:
        """The sampler that its students are made for."""

    def check(self, model: VideoModel) -> None:
        """UserError where the method cannot take this teacher."""
        return

    @property
    def order(self) -> tuple[str, ...]:
        """Whose turns `turns` yields."""
        return ("student",) if self.adversary == "none" else ("student", "discriminator")

    def span(self, player: str) -> tuple[float, float]:
        """From where to where, in shares of the run, a player trains."""
        return 0.0, 1.0

    @property
    def stages(self) -> tuple[float, ...]:
        """Where the stages of a progressive method begin, in shares of the run; 0 alone where there is one.

        The learning rates start anew there, and the average over training is of the last stage alone.
        """
        return (0.0,)

    def rate(self, player: str, progress: float) -> float:
        """A factor of the player's learning rate after this share of the run."""
        return 1.0

    @property
    def heaviest(self) -> float:
        """A share of the run at which a step needs the most memory; plans measure that one."""
        return 1 - 1e-6  # past adversarial_start and all stages

    def decay(self, progress: float, after: float) -> float | None:
        """Of the averaged target after an update between these shares of the run; None where it stays as it is."""
        return self.target_decay

    @property
    def consistency(self) -> ConsistencyFunction:
        return ConsistencyFunction(self.sigma_data, self.timestep_scaling)

    def grid(self, players: Players) -> SolverGrid:
        return SolverGrid(players.model.path, self.solver_steps)

    # The pieces of a step, in the order in which they are used --------------------------------------------------

    def noisy_pair(
        self, players: Players, z0: Tensor, batch: Batch, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(z_t, t, z_s, s): diffuse z0 to a drawn grid time t, and take the guided teacher's one step to s (item 2)."""
        t, s = (x.to(z0.device) for x in self.grid(players).draw(len(z0), rng))
        w = self.guidance_min + (self.guidance_max - self.guidance_min) * uniform(len(z0), rng, z0.device)
        z_t = self.noisy(players, z0, t, rng)

        def teacher(z: Tensor, r: Tensor) -> Denoised:
            return guided(players.student.teacher, z, r, batch.text, batch.empty, w + 1)

        path = players.model.path
        if self.solver == "midpoint":
            # s = 0 stands for the clean end, f(z, 0) = z: there the step is of first order, as DPM-Solver++'s last one
            end = torch.where(s > 0, s, torch.full_like(s, int(path.clean_time)))
            return z_t, t, midpoint_step(path, teacher, z_t, t, end), s
        return z_t, t, ddim_step(path, teacher(z_t, t), t, s), s

    def noisy(self, players: Players, z0: Tensor, t: Tensor, rng: torch.Generator) -> Tensor:
        """z_t of the path; with zero_terminal_snr pure noise, without z0, where generation starts.

        Few schedules end in pure noise (arXiv 2305.08891): what is left of z0 in z_T tells a student the brightness and
        the scenery of a clip, and generation, which starts from pure noise, would have it read them out of nothing. The
        teacher, too, steps from that noise: from z_T it would lead to what z0 says, of which the noise knows nothing,
        and the student would learn the commonest of what may come of it.
        """
        noise = normal(z0.shape, rng, z0)
        z_t = players.model.path.diffuse(z0, noise, t)
        if not self.zero_terminal_snr:
            return z_t
        first = self.sampler().times(players.model.path, 1)[0].to(t)
        return torch.where(expand(t == first, z0).bool(), noise, z_t)

    def online(self, players: Players, z: Tensor, t: Tensor, text: TextEmbedding) -> Tensor:
        """f_student(z, t), with gradients."""
        return self.consistency(z, t, players.student.student(z, t, text).x0)

    def target(self, players: Players, z: Tensor, s: Tensor, text: TextEmbedding) -> Tensor:
        """f_target(z, s), without gradients."""
        return self.settled(players.student.target, z, s, text)

    @torch.no_grad()
    def settled(self, denoise: Denoise, z: Tensor, s: Tensor, text: TextEmbedding) -> Tensor:
        """f(z, s) of a network, without gradients. Where s is the clean end c_out is 0 and no network is asked."""
        out = z.clone()
        noisy = s > 0
        if noisy.any():
            x0 = denoise(z[noisy], s[noisy], rows(text, noisy)).x0
            out[noisy] = self.consistency(z[noisy], s[noisy], x0)
        return out

    def own_share(self, progress: float) -> float:
        """lambda at this share of the run."""
        rising = min(1.0, progress / self.generated_ramp) if self.generated_ramp else 1.0
        return self.generated_probability * rising

    @property
    def mean_own_share(self) -> float:
        """The mean of `own_share` over the run."""
        return self.generated_probability * (1 - self.generated_ramp / 2)

    @torch.no_grad()
    def own_clips(self, players: Players, batch: Batch, rng: torch.Generator) -> Tensor:
        """Clean latents, some of them the student's own (item 7): each clip with probability `own_share`.

        "one-step" makes them from pure noise in a single step; "multi-step" simulates generation with a drawn number
        of steps up to trajectory_steps, as the student will be used.
        """
        z0 = batch.z0
        chosen = uniform(len(z0), rng, z0.device) < self.own_share(batch.progress)
        steps = 1
        if self.trajectory == "multi-step":
            steps = int(torch.randint(1, self.trajectory_steps + 1, (1,), generator=rng))
        if not chosen.any():
            return z0
        text = rows(batch.text, chosen)

        def denoise(z: Tensor, t: Tensor) -> Denoised:
            return players.student.student(z, t, text)

        noise = normal(z0[chosen].shape, rng, z0)
        made = sample(denoise, players.model.path, self.sampler(), noise, steps, rng)
        mixed = z0.clone()
        mixed[chosen] = made.to(z0.dtype)
        return mixed

    def picked_frames(self, players: Players, z: Tensor, rng: torch.Generator) -> Tensor:
        """K different frames of every clip, decoded: (B*K, 3, H, W), differentiable."""
        codec = players.model.codec  # one that compresses time makes more frames than the latents have
        order = torch.rand(z.shape[0], codec.pixel_frames(z.shape[2]), generator=rng).argsort(dim=1)
        return codec.decode_frames(z, order[:, : self.frames_picked].to(z.device))

    def student_adversarial(
        self, players: Players, frames: Tensor, batch: Batch, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The student's side of the frame adversary (item 6); no gradient is computed for the discriminator.

        None before adversarial_start: a discriminator that cannot tell yet pushes the student in a random direction.
        """
        if batch.progress < self.adversarial_start:
            return {}
        discriminator = _discriminator(players)
        with discriminator.frozen():
            logits = discriminator(frames, self._captions(batch), rng)
        return {"adversarial": self.adversarial_weight * AdversarialLoss(self.adversarial_loss).generator(logits)}

    def discriminator_losses(
        self, players: Players, frames: Tensor, batch: Batch, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The discriminator's side: the same frames, detached, against real ones; each under its own captions."""
        discriminator = _discriminator(players)
        if batch.real_frames is None or batch.real_text is None:
            raise ValueError("a method with an adversary needs real frames in its batches")
        fake = discriminator(frames.detach(), self._captions(batch), rng)
        with torch.no_grad():
            features = discriminator.see(batch.real_frames, rng)
        features = [f.requires_grad_() for f in features]
        real = discriminator.from_features(features, batch.real_text)
        losses = {"discriminator": AdversarialLoss(self.adversarial_loss).discriminator(real, fake)}
        if self.matching_weight:
            mismatched = self.mismatched(discriminator, [f.detach() for f in features], batch.real_text)
            losses["mismatched"] = self.matching_weight * mismatched
        if self.gradient_penalty:
            losses["penalty"] = self.gradient_penalty * gradient_penalty(real, features)
        return losses

    def mismatched(self, discriminator: FrameDiscriminator, features: list[Tensor], text: Tensor) -> Tensor:
        """Real frames, each under the caption of the one before it: the matching-aware discriminator (arXiv
        1605.05396, section 4.1). Where the two captions are the same, that frame does not count."""
        others = text.roll(1, 0)
        differ = (others != text).any(1)
        logits = discriminator.from_features(features, others)
        if not differ.any():
            return text.new_zeros(())
        return AdversarialLoss(self.adversarial_loss).rejected([head[differ] for head in logits])

    def elsewhere(self, players: Players, micro_batches: int) -> None:
        """Do what so many turns of the discriminator, made by other processes, do to it besides gradients.

        A pass in training moves its spectral norms on, by its weights alone, whatever it is shown.
        """
        if isinstance(players.discriminator, FrameDiscriminator):
            passes = 3 if self.matching_weight else 2  # made frames, real ones, real ones under other captions
            players.discriminator.skip(passes * micro_batches)

    def _captions(self, batch: Batch) -> Tensor:
        """Pooled captions of the picked frames, (B*K, E)."""
        return batch.text.pooled.repeat_interleave(self.frames_picked, dim=0)


def _discriminator(players: Players) -> FrameDiscriminator:
    if not isinstance(players.discriminator, FrameDiscriminator):
        raise ValueError("the method has an adversary but there is no discriminator of frames")
    return players.discriminator


def rows(text: TextEmbedding, chosen: Tensor) -> TextEmbedding:
    """Some of the prompts, by mask (B,)."""
    return TextEmbedding(text.hidden[chosen], text.pooled[chosen])


def normal(shape: torch.Size, rng: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal noise drawn on the generator's device, so that a seed means the same on every machine."""
    return torch.randn(shape, generator=rng, device=rng.device, dtype=torch.float32).to(like)


def uniform(count: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """`count` numbers in [0, 1)."""
    return torch.rand(count, generator=rng, device=rng.device).to(device)
