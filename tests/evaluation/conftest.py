"""Tiny networks with random weights in real transformers folders, and clips whose motion is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def videomae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, tubelet_size=2, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, num_labels=6, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("nets") / "videomae"
    VideoMAEForVideoClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(1)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    common = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "initializer_range": 0.3}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": len(words), "max_position_embeddings": 24, "num_hidden_layers": 1, **special}
    vision = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2}
    config = CLIPConfig(text_config={**common, **text}, vision_config={**common, **vision}, projection_dim=16)
    folder = tmp_path_factory.mktemp("nets") / "clip"
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessing = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


Clips = Callable[..., Tensor]


@pytest.fixture(scope="session")
def noise_videos() -> Clips:
    """(clips, seed, frames=8, side=32) -> white noise in [-1, 1], (clips, 3, frames, side, side)."""

    def make(clips: int, seed: int, frames: int = 8, side: int = 32) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return torch.rand(clips, 3, frames, side, side, generator=rng) * 2 - 1

    return make


@pytest.fixture(scope="session")
def sliding_video() -> Clips:
    """(dx, dy, frames=5, side=64, seed=0, width=side) -> a smooth random texture (1, 3, frames, side, width).

    It moves by exactly (dx, dy) pixels a frame: a sum of waves, evaluated at the shifted positions."""

    def make(
        dx: float, dy: float, frames: int = 5, side: int = 64, seed: int = 0, width: int | None = None
    ) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        waves = 48
        frequency = torch.rand(waves, 2, generator=rng, dtype=torch.float64) - 0.5  # radians a pixel
        phase = torch.rand(waves, generator=rng, dtype=torch.float64) * 2 * torch.pi
        rows = torch.arange(side, dtype=torch.float64)
        columns = torch.arange(width or side, dtype=torch.float64)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        pictures = []
        for t in range(frames):
            u, v = (x - dx * t)[..., None], (y - dy * t)[..., None]
            pictures.append(torch.cos(u * frequency[:, 0] + v * frequency[:, 1] + phase).mean(dim=-1))
        texture = (torch.stack(pictures) * 3.0).clamp(-1, 1).float()
        return texture.expand(3, -1, -1, -1).unsqueeze(0).contiguous()

    return make
