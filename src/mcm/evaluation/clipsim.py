"""CLIPSIM (Wu et al. 2021, GODIVA, arXiv 2104.14806): does each frame show what the prompt says?

The score of a clip is the mean over its frames of 100 cos(image, text) in CLIP's joint space (Radford et al.
2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from mcm.errors import UserError
from mcm.evaluation.frechet import Array
from mcm.evaluation.networks import (
    Normalise,
    checked_frames,
    checked_videos,
    network_folder,
    resize,
    weights_sha256,
)
from mcm.models.folders import load_network

# Statistics of CLIP's own training pictures: what every released CLIP was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipScorer:
    """Frames and prompts in the joint space of a CLIP.

    folder: a transformers folder or hub id of CLIPModel with its tokenizer; used in float32. UserError for
    another folder. Frames are prepared as CLIP does: shorter side to the network's size (bicubic,
    antialiased), centre crop, normalised.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", batch_size: int = 64):
        purpose = "the CLIP folder"
        self.folder = network_folder(folder, "clip", purpose)
        self.name = Path(folder).name if Path(folder).is_dir() else str(folder)
        self.device, self.batch_size = torch.device(device), batch_size
        self.network: CLIPModel = load_network(CLIPModel, self.folder).to(self.device)
        # Without these files transformers makes up an empty vocabulary, in which all prompts are the same.
        if not any((self.folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise UserError(
                f"{purpose} {folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{purpose} {folder} has a tokenizer that cannot be read: {error}") from error
        config: Any = self.network.config
        self.size = int(config.vision_config.image_size)
        self.length = int(config.text_config.max_position_embeddings)
        self.dimensions = int(config.projection_dim)
        self.half = max(1, int(config.vision_config.num_hidden_layers) // 2)
        self.normalise = Normalise(self.folder, CLIP_MEAN, CLIP_STD, purpose)
        self.sha256 = weights_sha256(self.folder)

    def frame_features(self, frames: Tensor) -> Tensor:
        """frames (N, 3, H, W) in [-1, 1] -> image features (N, D) in the joint space, float32 on the CPU."""
        return self.seen(frames)[0]

    def appearance_features(self, frames: Tensor) -> Tensor:
        """frames (N, 3, H, W) in [-1, 1] -> what the FID compares (N, width), float32 on the CPU: the mean of all
        patches after the first half of the vision tower's blocks."""
        return self.seen(frames)[1]

    @torch.no_grad()
    def seen(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Both features of frames, `frame_features` and `appearance_features`, from one pass."""
        joint, appearance = [], []
        for part in checked_frames(frames).split(self.batch_size):
            pixels = self.normalise(self._squared(part.to(self.device, torch.float32)))
            said = self.network.vision_model(pixel_values=pixels, output_hidden_states=True)
            joint.append(self.network.visual_projection(said.pooler_output).cpu())
            appearance.append(said.hidden_states[self.half][:, 1:].mean(1).cpu())  # token 0 is the class token
        return torch.cat(joint), torch.cat(appearance)

    def _squared(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        scale = self.size / min(height, width)
        frames = resize(
            frames, (max(self.size, round(height * scale)), max(self.size, round(width * scale))), "bicubic"
        )
        top, left = (frames.shape[-2] - self.size) // 2, (frames.shape[-1] - self.size) // 2
        return frames[..., top : top + self.size, left : left + self.size]

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Features (n, D) of n prompts in the joint space, float32 on the CPU; long prompts are cut."""
        parts = []
        for start in range(0, len(prompts), self.batch_size):
            tokens = self.tokenizer(
                list(prompts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                max_length=self.length,
                return_tensors="pt",
            ).to(self.device)
            pooled = self.network.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            parts.append(self.network.text_projection(pooled).cpu())
        return torch.cat(parts)

    def similarity(self, videos: Tensor, prompts: Sequence[str]) -> Array:
        """CLIPSIM (B,) of each clip, float64, -100..100; videos (B, 3, T, H, W) in [-1, 1], B prompts."""
        videos = checked_videos(videos)
        frames = self.frame_features(videos.transpose(1, 2).flatten(0, 1))
        return clip_similarity(frames.unflatten(0, (len(videos), -1)), self.text_features(prompts))

    def protocol(self) -> dict[str, Any]:
        """What a CLIPSIM or an FID must state to be compared."""
        return {
            "network": self.name,
            "weights_sha256": self.sha256,
            "size": self.size,
            "resize": "bicubic, antialiased, shorter side, centre crop",
            "mean": list(self.normalise.mean),
            "std": list(self.normalise.std),
            "dimensions": self.dimensions,
        }


def clip_similarity(images: Tensor, texts: Tensor) -> Array:
    """Mean over frames of 100 cos(image, text): images (B, T, D), texts (B, D) -> (B,) float64."""
    if len(images) != len(texts):
        raise UserError(f"{len(images)} videos and {len(texts)} prompts: expected one prompt for each video")
    cosine = torch.cosine_similarity(images.double(), texts.double().unsqueeze(1), dim=-1)
    return 100.0 * cosine.mean(dim=1).numpy()
