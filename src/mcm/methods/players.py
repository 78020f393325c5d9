"""Who takes part in a training step, on what material, and whose losses a turn holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcm.models.bases import Bases
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.student import Student
from mcm.models.video import TextEmbedding, VideoModel


class Batch(NamedTuple):
    """One micro-batch of training material, on the device.

    z0: latents of B clips, (B, C, T, h, w); text: their captions; empty: the empty prompt, one row (the
    unconditional half of guidance). real_frames: (N, 3, H, W) in [-1, 1], what the discriminator takes for real, and
    real_text: pooled embeddings of their captions (N, E); both None where the method has no adversary. progress: the
    share of the run that is behind, in [0, 1), for methods of several stages. base: number of the base image model that
    the networks have inside, where a run has several.
    """

    z0: Tensor
    text: TextEmbedding
    empty: TextEmbedding
    real_frames: Tensor | None = None
    real_text: Tensor | None = None
    progress: float = 0.0
    base: int = 0


class Turn(NamedTuple):
    """The losses of one player; what the player minimises is their sum."""

    player: str
    losses: dict[str, Tensor]


@dataclass
class Players:
    """Who takes part in a training step.

    model: the teacher (its codec and noise path); student: adapters on the teacher's weights or a full copy;
    motion: phi, and averaged_motion: its average over time, which the target side looks through (equal to phi where
    phi has no weights); discriminator: of frames, or of latent clips, as the method's `judge` says; None where nothing
    judges. bases: image models that take turns inside teacher and student; None for the teacher's own alone.
    """

    model: VideoModel
    student: Student
    motion: nn.Module
    averaged_motion: nn.Module
    discriminator: FrameDiscriminator | EncoderDiscriminator | None
    bases: Bases | None = None

    def base(self, number: int) -> int:
        """The number of the base that micro-batch `number` of the run sees."""
        return 0 if self.bases is None else self.bases.turn(number)

    def beneath(self, base: int) -> AbstractContextManager[None]:
        """Inside, teacher, student and target have the spatial weights of a base; see `Bases.beneath`."""
        return nullcontext() if self.bases is None else self.bases.beneath(self.student.denoisers(), base)

    def parameters(self, player: str) -> dict[str, nn.Parameter]:
        """What a player trains, by name."""
        if player in ("spatial", "temporal"):  # the student in two parts, of methods that train them apart
            temporal = self.student.denoisers()[0].is_temporal
            weights = self.student.trainable().items()
            return {f"student.{name}": p for name, p in weights if temporal(name) == (player == "temporal")}
        if player == "student":
            head = {f"motion.{name}": p for name, p in self.motion.named_parameters()}
            return {**{f"student.{name}": p for name, p in self.student.trainable().items()}, **head}
        if player == "discriminator" and self.discriminator is not None:
            return self.discriminator.trainable()
        raise ValueError(f"no player {player!r} here")

    @contextmanager
    def only(self, player: str) -> Iterator[None]:
        """Inside, no other part of the student takes gradients."""
        own = {id(p) for p in self.parameters(player).values()}
        others = [p for p in self.student.trainable().values() if id(p) not in own]
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    @torch.no_grad()
    def average(self, target_decay: float | None, head_decay: float) -> None:
        """After an update of the student: move the averaged target and the averaged motion head along."""
        if target_decay is not None:
            self.student.average(target_decay)
        for kept, new in zip(self.averaged_motion.parameters(), self.motion.parameters(), strict=True):
            kept.lerp_(new, 1 - head_decay)
