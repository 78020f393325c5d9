"""A discriminator of latent clips: the teacher's own encoder and middle, trained, with a small head.

After SDXL-Lightning (arXiv 2402.13929) and AnimateDiff-Lightning (arXiv 2403.12706). It works on noisy
latents, hears the text and the time as the teacher does, and needs no picture to be decoded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from mcm.models.checkpointing import uncheckpoint
from mcm.models.video import TextEmbedding, VideoDenoiser

GROUPS = 8


class _Head(nn.Module):
    """Features of the middle (B, C, T, h, w) -> a logit for each clip (B,)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, width, (1, 3, 3), padding=(0, 1, 1)),
            nn.GroupNorm(GROUPS if width % GROUPS == 0 else 1, width),
            nn.SiLU(),
            nn.Conv3d(width, 1, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).flatten(1).mean(1)


class EncoderDiscriminator(nn.Module):
    """High logits say that clips came from the teacher.

    With `before`, the noisier latents that a step started from, it asks whether the step is the teacher's (the
    conditional objective: keep the trajectory); without, whether the clips alone could be (the unconditional one).
    Where several base image models are distilled at once it is told which one it judges, by an embedding of each
    that is added to the time's; they begin as zeros.
    """

    def __init__(self, encoder: VideoDenoiser, channels: int, bases: int = 1) -> None:
        """encoder: its network ends with its middle, of `channels`; see `of`. bases: how many there are."""
        super().__init__()
        self.encoder = encoder
        self.pair, self.alone = _Head(2 * channels, channels), _Head(channels, channels)
        width = cast(Any, encoder.network).time_embedding.linear_2.out_features
        self.bases = nn.Parameter(torch.zeros(bases, width)) if bases > 1 else None

    @classmethod
    def of(cls, denoiser: VideoDenoiser, rng: torch.Generator, bases: int = 1) -> Self:
        """On a copy of a teacher's network, before adapters are put in; rng draws the heads."""
        network: Any = copy.deepcopy(denoiser.network)
        uncheckpoint(network)  # whose layers may not be thawed between their two passes, as `frozen` does
        # Without the way up, diffusers' UNets return what their middle says.
        network.up_blocks, network.conv_norm_out, network.conv_out = nn.ModuleList(), None, nn.Identity()
        encoder = type(denoiser)(network, denoiser.path, denoiser.kind, denoiser.multiple, denoiser.max_frames)
        channels = network.config.block_out_channels[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
            new = cls(encoder, channels, bases)
        return new.to(next(denoiser.parameters()).device).requires_grad_(True)

    def forward(
        self, z: Tensor, s: Tensor, text: TextEmbedding, before: tuple[Tensor, Tensor] | None = None, base: int = 0
    ) -> Tensor:
        """Latents z (B, C, T, h, w) at times s (B,), and the latents and times before the step -> logits (B,).

        base: number of the image model that they came through.
        """
        with self._told(base):
            return self._logits(z, s, text, before)

    def _logits(self, z: Tensor, s: Tensor, text: TextEmbedding, before: tuple[Tensor, Tensor] | None) -> Tensor:
        hidden = text.hidden.expand(len(z), -1, -1)
        if before is None:
            return self.alone(self._middle(z, s, hidden))
        both = self._middle(torch.cat([z, before[0]]), torch.cat([s, before[1]]), torch.cat([hidden, hidden]))
        return self.pair(torch.cat(both.chunk(2), dim=1))

    def _middle(self, z: Tensor, t: Tensor, hidden: Tensor) -> Tensor:
        return self.encoder.predict(z, t.clamp(min=0), hidden, None)  # the clean end lies before the first time

    @contextmanager
    def _told(self, base: int) -> Iterator[None]:
        """Inside, the base's embedding is added to what the encoder makes of the time, (B, width)."""
        if self.bases is None:
            yield
            return
        embedding = self.bases[base]

        def added(module: nn.Module, given: Any, out: Tensor) -> Tensor:
            return out + embedding.to(out.dtype)

        hook = cast(Any, self.encoder.network).time_embedding.register_forward_hook(added)
        try:
            yield
        finally:
            hook.remove()

    def trainable(self) -> dict[str, nn.Parameter]:
        """All weights by stable names."""
        return dict(self.named_parameters())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """For the student's turn: logits made inside give gradients to the latents, none to these weights."""
        self.requires_grad_(False)
        try:
            yield
        finally:
            self.requires_grad_(True)
