"""The zoo's video feature network (VideoMAE classifier) for the Frechet video distance.

It answers the world's questions, names the domain, tells natural motion from frozen and shuffled frames, and follows
the joints, so that its features see content, frame quality and motion. (Asked for class names alone, it read colours
and scenes within 400 steps and still guessed at actions after 700: the joints are what teaches it to look at limbs.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from mcm.pocket import world
from mcm.pocket.training.corpus import Corpus, draw
from mcm.pocket.training.labels import QUESTIONS, answers, question_losses
from mcm.pocket.training.loop import Losses, train
from mcm.pocket.world import DOMAINS

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


def fit(work: Path, steps: int = 1800, batch: int = 24) -> VideoMAEForVideoClassification:
    """Train on clips of all domains, half of them broadcast."""
    body, joints = build(), nn.Linear(96, 2 * 36)
    model = nn.ModuleDict({"body": body, "joints": joints})
    counts = {"broadcast": 3000, "studio": 1000, "toon": 1000, "relief": 1000}
    corpora = {domain: Corpus(work, "train", domain, counts[domain]) for domain in DOMAINS}

    points = {domain: world.stage(corpus.specs, 8) for domain, corpus in corpora.items()}

    def losses(step: int, rng: torch.Generator) -> Losses:
        videos, truths, places = [], [], []
        for number, (domain, corpus) in enumerate(corpora.items()):
            count = batch // 2 if domain == "broadcast" else batch // 6
            index = draw(rng, count, len(corpus))
            videos.append(corpus.clips(index))
            places.append(points[domain][index])
            truths.append(answers([corpus.specs[i] for i in index]) | {"domain": torch.full((count,), number)})
        video, place, flow = _disturbed(torch.cat(videos), torch.cat(places), rng)
        truth = {q: torch.cat([t[q] for t in truths]) for q in truths[0]} | {"flow of time": flow}
        out = body(video.transpose(1, 2), output_hidden_states=True)
        parts = question_losses(out.logits, truth, SIZES)
        moments = out.hidden_states[-1].unflatten(1, (4, -1)).mean(2)  # a token a tubelet of two frames
        followed = joints(moments).view(-1, 4, 2, 18, 2).flatten(1, 2) + 0.5
        return parts | {"joints": 20 * (followed - place).abs().mean()}

    how = {"steps": steps, "learning_rate": 1e-3, "work": work, "weight_decay": 0.05, "warmup": 200}
    model.load_state_dict(train("videomae", model, losses, **how))
    return body.eval()
