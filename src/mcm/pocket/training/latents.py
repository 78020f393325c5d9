"""Latents and text embeddings of a corpus, computed once and kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from mcm.pocket.training.corpus import Corpus

_CHUNK = 250


class Latents:
    """Scaled latents of a corpus: `clips(index)` -> (B, C, T, h, w); encoded chunk by chunk, resumable.

    vae: a diffusers AutoencoderKL.
    """

    def __init__(self, work: Path, corpus: Corpus, vae: Any, tag: str) -> None:
        folder = work / "latents" / tag
        folder.mkdir(parents=True, exist_ok=True)
        self.specs, chunks = corpus.specs, []
        for start in range(0, len(corpus), _CHUNK):
            path = folder / f"{start:06d}.npy"
            if not path.exists():
                video = corpus.clips(list(range(start, min(start + _CHUNK, len(corpus)))))
                frames = video.transpose(1, 2).flatten(0, 1)
                with torch.no_grad():
                    z = torch.cat([vae.encode(part).latent_dist.mean for part in frames.split(50)])
                z = z.unflatten(0, (-1, video.shape[2])).transpose(1, 2) * vae.config.scaling_factor
                partial = path.with_suffix(".partial.npy")
                np.save(partial, z.half().numpy())
                partial.rename(path)
            chunks.append(np.load(path))
        self.z = torch.from_numpy(np.concatenate(chunks))

    def __len__(self) -> int:
        return len(self.z)

    def clips(self, index: list[int]) -> Tensor:
        return self.z[index].float()


class Captions:
    """Hidden states of the text encoder for captions, each computed once; `drop` replaces some by the empty text."""

    def __init__(self, clip_folder: Path) -> None:
        self._tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
        self._encoder = CLIPTextModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """(B, L, D)."""
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            tokens = self._tokenizer(new, padding="max_length", truncation=True, return_tensors="pt")
            self._known |= dict(zip(new, self._encoder(tokens.input_ids).last_hidden_state, strict=True))
        return torch.stack([self._known[t] for t in texts])

    def drop(self, texts: list[str], rng: torch.Generator, probability: float = 0.1) -> Tensor:
        kept = torch.rand(len(texts), generator=rng) >= probability
        return self([t if k else "" for t, k in zip(texts, kept.tolist(), strict=True)])
