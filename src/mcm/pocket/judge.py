"""The judge: a convolutional classifier of clips that says which action, colours, scene and camera a clip shows.

It is trained on rendered clips alone and takes no part in any training or in the Frechet distance, so that it can
say, independently, whether a sample shows what its prompt asked for.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mcm.pocket.world import Spec

QUESTIONS = {"action": 6, "top": 6, "bottom": 6, "scene": 4, "camera": 3}


def _spatial(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inside, outside, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        nn.GroupNorm(8, outside),
        nn.ReLU(),
        nn.Conv3d(outside, outside, (3, 1, 1), padding=(1, 0, 0)),
        nn.GroupNorm(8, outside),
        nn.ReLU(),
    )


class Judge(nn.Module):
    """Clips (B, 3, T, 64, 64) in [-1, 1] -> logits for every question."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_spatial(3, 24), _spatial(24, 48), _spatial(48, 96), _spatial(96, 128))
        self.head = nn.Sequential(nn.Linear(3 * 128, 192), nn.ReLU(), nn.Linear(192, sum(QUESTIONS.values())))

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        x = self.body(video)
        still = x.amax(dim=(-2, -1))  # (B, C, T): the strongest answer anywhere in each frame
        pooled = torch.cat([still.mean(-1), still.amax(-1), x.mean(dim=(-3, -2, -1))], dim=-1)
        return dict(zip(QUESTIONS, self.head(pooled).split(list(QUESTIONS.values()), dim=-1), strict=True))

    @classmethod
    def load(cls, file: Path) -> Judge:
        judge = cls()
        judge.load_state_dict({name: value.float() for name, value in load_file(file).items()})
        return judge.eval().requires_grad_(False)


class Verdict(dict[str, float]):
    """Fractions of clips right, by question, and `colours`: both clothing colours right."""


def verdict(judge: Judge, videos: Tensor, specs: list[Spec], batch: int = 32) -> dict[str, Tensor]:
    """Judge clips (B, 3, T, 64, 64) against what was asked for: 0/1 (B,) for every question and for `colours`."""
    right: dict[str, list[Tensor]] = {q: [] for q in QUESTIONS}
    with torch.no_grad():
        for start in range(0, len(videos), batch):
            logits = judge(videos[start : start + batch])
            for q in QUESTIONS:
                truth = torch.tensor([s.labels[q] for s in specs[start : start + batch]])
                right[q].append((logits[q].argmax(-1) == truth).float())
    out = {q: torch.cat(parts) for q, parts in right.items()}
    out["colours"] = out["top"] * out["bottom"]
    return out
