"""Training batches: latents and captions of clips, and real frames for the discriminator."""

from __future__ import annotations

import torch
from torch import Tensor

from mcm.data.cache import EncodedClips
from mcm.data.open import PictureSource
from mcm.data.prepared import PreparedPictures
from mcm.errors import UserError
from mcm.methods.base import Batch
from mcm.models.video import TextEmbedding, TextEncoder


class Material:
    """Makes a `Batch` from the numbers of its clips; called by the trainer.

    clips: encoded clips (with real frames where the adversary's real frames are the videos'); where they bring the
    text encoder's word on their captions, too, it is not asked again. pictures: a source of
    pictures where they are real frames instead. real_frames: how many real frames a clip brings, 0 for none.
    Real frames come from other clips or pictures than the batch's own, drawn at random, each with its own caption.
    bases: where each of several bases has clips of its own, how many bases: the clips are then so many runs of equal
    length, in the bases' order. 1 where all see the same clips.
    """

    def __init__(
        self,
        clips: EncodedClips,
        text: TextEncoder,
        pictures: PictureSource | None = None,
        real_frames: int = 0,
        device: torch.device | str = "cpu",
        bases: int = 1,
    ) -> None:
        if real_frames and pictures is None and not clips.kept:
            raise UserError("the adversary needs real frames: the clips have none, and there are no pictures")
        self.clips, self.text, self.pictures = clips, text, pictures
        self.real_frames, self.device = real_frames, device
        self._bases = bases

    def __len__(self) -> int:
        """How many clips each base has."""
        return len(self.clips) // self._bases

    def __call__(self, index: list[int], rng: torch.Generator, base: int = 0) -> Batch:
        """The batch of the clips `index`, each below the length, of base number `base`; `rng` picks the real frames."""
        if self._bases > 1:
            index = [base * len(self) + i for i in index]
        z0 = self.clips.latents(index).float().to(self.device)
        text, empty = self._text(index), self._empty()
        count = self.real_frames * len(index)
        if not count:
            return Batch(z0, text, empty)
        frames, pooled = self._real(count, rng)
        return Batch(z0, text, empty, frames.to(self.device), pooled)

    def _text(self, index: list[int]) -> TextEmbedding:
        """What the text encoder says of the captions of clips."""
        kept = self.clips.texts(index)
        return self.text(self.clips.said(index)) if kept is None else self._embedding(kept)

    def _empty(self) -> TextEmbedding:
        kept = self.clips.empty_text()
        return self.text([""]) if kept is None else self._embedding(kept)

    def _embedding(self, kept: tuple[Tensor, Tensor]) -> TextEmbedding:
        return TextEmbedding(*(part.to(self.device) for part in kept))

    def _real(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` real frames (N, 3, H, W) in [-1, 1] and the pooled embeddings of their captions (N, E)."""
        if self.pictures is not None:
            chosen = torch.randint(len(self.pictures), (count,), generator=rng).tolist()
            pictures = [self.pictures[i] for i in chosen]
            kept = self.pictures.pooled(chosen) if isinstance(self.pictures, PreparedPictures) else None
            return torch.stack([p.image for p in pictures]), self._pooled(kept, [p.caption for p in pictures])
        clips = torch.randint(len(self.clips), (count,), generator=rng).tolist()
        moments = torch.randint(self.clips.kept, (count,), generator=rng).tolist()
        frames = torch.stack([self.clips.frame(clip, k) for clip, k in zip(clips, moments, strict=True)])
        return frames.float() / 127.5 - 1, self._pooled(self.clips.pooled(clips), self.clips.said(clips))

    def _pooled(self, kept: Tensor | None, captions: list[str]) -> Tensor:
        """(N, E), kept or from the text encoder."""
        return self.text(captions).pooled if kept is None else kept.to(self.device)
