"""Training batches: latents and captions of clips, and real frames for the discriminator."""

from __future__ import annotations

import torch
from torch import Tensor

from mcm.data.cache import LatentSet
from mcm.data.open import PictureSource
from mcm.errors import UserError
from mcm.methods.base import Batch
from mcm.models.video import TextEncoder


class Material:
    """Makes a `Batch` from the numbers of its clips; called by the trainer.

    clips: encoded clips (with real frames where the adversary's real frames are the videos'). pictures: a source of
    pictures where they are real frames instead. real_frames: how many real frames a clip brings, 0 for none.
    Real frames come from other clips or pictures than the batch's own, drawn at random, each with its own caption.
    """

    def __init__(
        self,
        clips: LatentSet,
        text: TextEncoder,
        pictures: PictureSource | None = None,
        real_frames: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if real_frames and pictures is None and clips.frames is None:
            raise UserError("the adversary needs real frames: the clips have none, and there are no pictures")
        self.clips, self.text, self.pictures = clips, text, pictures
        self.real_frames, self.device = real_frames, device

    def __call__(self, index: list[int], rng: torch.Generator) -> Batch:
        """The batch of the clips `index`; `rng` picks the real frames."""
        z0 = self.clips.z[index].float().to(self.device)
        text = self.text([self.clips.captions[i] for i in index])
        empty = self.text([""])
        count = self.real_frames * len(index)
        if not count:
            return Batch(z0, text, empty)
        frames, captions = self._real(count, rng)
        return Batch(z0, text, empty, frames.to(self.device), self.text(captions).pooled)

    def _real(self, count: int, rng: torch.Generator) -> tuple[Tensor, list[str]]:
        """`count` real frames (N, 3, H, W) in [-1, 1] and their captions."""
        if self.pictures is not None:
            chosen = torch.randint(len(self.pictures), (count,), generator=rng).tolist()
            pictures = [self.pictures[i] for i in chosen]
            return torch.stack([p.image for p in pictures]), [p.caption for p in pictures]
        kept = self.clips.frames
        assert kept is not None  # seen to in __init__
        clips = torch.randint(len(kept), (count,), generator=rng)
        moments = torch.randint(kept.shape[1], (count,), generator=rng)
        frames = kept[clips, moments].float() / 127.5 - 1
        return frames, [self.clips.captions[i] for i in clips.tolist()]
