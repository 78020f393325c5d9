"""The judge: a convolutional classifier of clips that says which action, colours, scene and camera a clip shows.

It is trained on rendered clips alone and takes no part in any training or in the Frechet distance, so that it can
say, independently, whether a sample shows what its prompt asked for.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mcm.pocket.world import QUESTIONS, Spec


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
    """Clips (B, 3, T, 64, 64) in [-1, 1] -> logits for every question.

    Each frame is read with its places kept (an action is where the limbs are), then frames are read in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_spatial(3, 24), _spatial(24, 48), _spatial(48, 96), _spatial(96, 128))
        self.look = nn.Sequential(nn.Linear(128 * 4 * 4, 128), nn.ReLU())
        self.joints = nn.Linear(128, 36)
        self.order = nn.Sequential(nn.Conv1d(128, 128, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * 128, 192), nn.ReLU(), nn.Linear(192, sum(QUESTIONS.values())))

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        return self.answer(self.looks(video))

    def looks(self, video: Tensor) -> Tensor:
        """What is seen in every frame, (B, T, 128)."""
        return self.look(self.body(video).transpose(1, 2).flatten(2))

    def answer(self, looks: Tensor) -> dict[str, Tensor]:
        """Logits for every question."""
        x = self.order(looks.transpose(1, 2))
        logits = self.head(torch.cat([x.mean(-1), x.amax(-1)], dim=-1))
        return dict(zip(QUESTIONS, logits.split(list(QUESTIONS.values()), dim=-1), strict=True))

    def follow(self, looks: Tensor) -> Tensor:
        """Keypoints (B, T, 18, 2) as fractions of the frame's side; a further task of its training."""
        return self.joints(looks).unflatten(-1, (18, 2)) + 0.5

    @classmethod
    def load(cls, file: Path) -> Judge:
        judge = cls()
        judge.load_state_dict({name: value.float() for name, value in load_file(file).items()})
        return judge.eval().requires_grad_(False)


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
