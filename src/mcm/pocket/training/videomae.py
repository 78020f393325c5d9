"""The zoo's video feature network (VideoMAE classifier) for the Frechet video distance.

It answers the world's questions, names the domain, tells natural motion from frozen and shuffled frames, follows
the joints, and grades damage, so that its features see content, frame quality and motion. (Asked for class names
alone, it read colours and scenes within 400 steps and still guessed at actions after 700: the joints, asked of every
patch and of every moment, are what teaches it to look at limbs.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from mcm.pocket.training.corpus import Domains
from mcm.pocket.training.damage import KINDS, damaged, strengths
from mcm.pocket.training.labels import answers, question_losses
from mcm.pocket.training.loop import Losses, train
from mcm.pocket.world import DOMAINS, QUESTIONS

SIZES = {**QUESTIONS, "domain": len(DOMAINS), "flow of time": 3}


def build() -> VideoMAEForVideoClassification:
    """The network, untrained: 8 frames of 64 x 64, tubelets of 2 x 8 x 8, width 96, four layers."""
    settings: dict[str, Any] = {
        "image_size": 64, "patch_size": 8, "num_frames": 8, "tubelet_size": 2, "hidden_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384,
        "num_labels": sum(SIZES.values()), "use_mean_pooling": True,
    }  # fmt: skip
    return VideoMAEForVideoClassification(VideoMAEConfig(**settings))


def _disturbed(video: Tensor, joints: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A quarter of the clips frozen, a quarter with shuffled frames.

    Video (B, 3, T, H, W) and joints (B, T, 18, 2), alike, and what was done: 0 natural, 1 frozen, 2 shuffled.
    """
    kind = torch.randint(4, (len(video),), generator=rng).sub(1).clamp(min=0)
    video, joints, frames = video.clone(), joints.clone(), video.shape[2]
    for i, k in enumerate(kind.tolist()):
        if k:
            order = torch.randperm(frames, generator=rng)
            order = order[:1].expand(frames) if k == 1 else order
            video[i], joints[i] = video[i, :, order], joints[i, order]
    return video, joints, kind


def joints_in_patches(joints: Tensor, patches: int = 8, tubelet: int = 2) -> Tensor:
    """Which joints (B, T, 18, 2) each token holds, (B, T/2 * 8 * 8, 18) of 0 and 1: a token is 2 frames of a patch."""
    cell = (joints * patches).long().clamp(0, patches - 1)
    number = cell[..., 1] * patches + cell[..., 0]
    held = F.one_hot(number, patches**2).unflatten(1, (-1, tubelet)).amax(2)  # (B, T/2, 18, patches^2)
    return held.transpose(-1, -2).flatten(1, 2).float()


def fit(work: Path, steps: int = 5600, batch: int = 24) -> VideoMAEForVideoClassification:
    """Train on clips of all domains, half of them broadcast."""
    body, joints, held, grade = build(), nn.Linear(96, 2 * 36), nn.Linear(96, 18), nn.Linear(96, len(KINDS))
    model = nn.ModuleDict({"body": body, "joints": joints, "held": held, "grade": grade})
    domains = Domains(work)

    def losses(step: int, rng: torch.Generator) -> Losses:
        drawn = domains.draw(rng, batch)
        video, place, flow = _disturbed(drawn.clips(), drawn.joints, rng)
        truth = answers(drawn.specs) | {"domain": drawn.domain, "flow of time": flow}
        strength = strengths(len(video), rng)
        video = damaged(video, strength, rng)
        out = body(video.transpose(1, 2), output_hidden_states=True)
        parts = question_losses(out.logits, truth, SIZES)
        tokens = out.hidden_states[-1]
        parts["held"] = 10 * F.binary_cross_entropy_with_logits(held(tokens), joints_in_patches(place))
        # Of the very features that the distance is made of. Squared: most strengths are 0, the median of them all.
        parts["damage"] = 30 * (grade(tokens.mean(1)) - strength).square().mean()
        moments = tokens.unflatten(1, (4, -1)).mean(2)  # of two frames each
        followed = joints(moments).view(-1, 4, 2, 18, 2).flatten(1, 2) + 0.5
        return parts | {"joints": 20 * (followed - place).abs().mean()}

    how = {"steps": steps, "learning_rate": 1e-3, "work": work, "weight_decay": 0.05, "warmup": 200}
    model.load_state_dict(train("videomae", model, losses, **how))
    return body.eval()
