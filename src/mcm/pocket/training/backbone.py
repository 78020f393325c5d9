"""The zoo's picture backbone (DINOv2 layout) for the frame discriminator.

It locates the joints, answers the world's questions about single frames, and estimates blur, contrast and noise that
were added to a frame: general sight, told neither the names of the domains nor which of them is wanted.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from mcm.pocket.training.corpus import Domains
from mcm.pocket.training.labels import answers, question_losses
from mcm.pocket.training.loop import Losses, train
from mcm.pocket.world import QUESTIONS

SIZES = {q: n for q, n in QUESTIONS.items() if q != "camera"}  # one frame shows no camera motion


def build() -> Dinov2Model:
    """The network, untrained: 64 x 64 in patches of 8 x 8, width 96, six blocks."""
    return Dinov2Model(
        Dinov2Config(
            image_size=64, patch_size=8, hidden_size=96, num_hidden_layers=6, num_attention_heads=4, mlp_ratio=4,
            layerscale_value=0.1,
        )
    )  # fmt: skip


def _worsened(x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur, flatten and roughen frames by amounts in [0, 1]; returns the frames and the three amounts (N, 3)."""
    amount = torch.rand(len(x), 3, generator=rng)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blur, flat, rough = (a[:, None, None, None] for a in amount.unbind(-1))
    x = (x + blur * (soft - x)) * (1 - 0.5 * flat)
    return x + 0.12 * rough * torch.randn(x.shape, generator=rng), amount


def fit(work: Path, steps: int = 1500, batch: int = 48) -> Dinov2Model:
    """Train on frames of all domains."""
    body = build()
    joints, questions, quality = nn.Linear(96, 36), nn.Linear(96, sum(SIZES.values())), nn.Linear(96, 3)
    model = nn.ModuleDict({"body": body, "joints": joints, "questions": questions, "quality": quality})
    domains = Domains(work)

    def losses(step: int, rng: torch.Generator) -> Losses:
        drawn = domains.draw(rng, batch, broadcast=0.25)
        frames, places = drawn.frames(rng)
        x, amount = _worsened(frames, rng)
        out = body(x)
        pooled = out.last_hidden_state[:, 1:].mean(1)
        truth = {q: v for q, v in answers(drawn.specs).items() if q in SIZES}
        parts = {f"{q}": 0.25 * v for q, v in question_losses(questions(pooled), truth, SIZES).items()}
        parts["joints"] = 10 * (joints(out.pooler_output).view(-1, 18, 2) + 0.5 - places).abs().mean()
        parts["quality"] = 2 * (quality(pooled) + 0.5 - amount).abs().mean()
        return parts

    model.load_state_dict(
        train("backbone", model, losses, steps=steps, learning_rate=1e-3, work=work, weight_decay=0.05, warmup=200)
    )
    return body.eval()
