"""The zoo's video feature network (VideoMAE classifier) for the Frechet video distance.

It answers the world's questions, names the domain and tells natural motion from frozen and shuffled frames, so that
its features see both content, frame quality and motion.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from mcm.pocket.training.corpus import Corpus, draw
from mcm.pocket.training.labels import QUESTIONS, answers, question_losses
from mcm.pocket.training.loop import Losses, train
from mcm.pocket.world import DOMAINS

SIZES = {**QUESTIONS, "domain": len(DOMAINS), "flow of time": 3}


def build() -> VideoMAEForVideoClassification:
    """The network, untrained: 8 frames of 64 x 64, tubelets of 2 x 8 x 8, width 96, four layers."""
    return VideoMAEForVideoClassification(
        VideoMAEConfig(
            image_size=64, patch_size=8, num_frames=8, tubelet_size=2, hidden_size=96, num_hidden_layers=4,
            num_attention_heads=4, intermediate_size=384, num_labels=sum(SIZES.values()), use_mean_pooling=True,
        )
    )  # fmt: skip


def _disturbed(video: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A quarter of the clips frozen, a quarter with shuffled frames; (video, 0 natural / 1 frozen / 2 shuffled)."""
    kind = torch.randint(4, (len(video),), generator=rng).sub(1).clamp(min=0)
    out = video.clone()
    for i, k in enumerate(kind.tolist()):
        if k == 1:
            moment = int(torch.randint(video.shape[2], (1,), generator=rng))
            out[i] = video[i, :, moment : moment + 1]
        elif k == 2:
            out[i] = video[i, :, torch.randperm(video.shape[2], generator=rng)]
    return out, kind


def fit(work: Path, steps: int = 1800, batch: int = 24) -> VideoMAEForVideoClassification:
    """Train on clips of all domains, half of them broadcast."""
    model = build()
    counts = {"broadcast": 3000, "studio": 1000, "toon": 1000, "relief": 1000}
    corpora = {domain: Corpus(work, "train", domain, counts[domain]) for domain in DOMAINS}

    def losses(step: int, rng: torch.Generator) -> Losses:
        videos, truths = [], []
        for number, (domain, corpus) in enumerate(corpora.items()):
            count = batch // 2 if domain == "broadcast" else batch // 6
            index = draw(rng, count, len(corpus))
            videos.append(corpus.clips(index))
            truths.append(answers([corpus.specs[i] for i in index]) | {"domain": torch.full((count,), number)})
        video, flow = _disturbed(torch.cat(videos), rng)
        truth = {q: torch.cat([t[q] for t in truths]) for q in truths[0]} | {"flow of time": flow}
        return question_losses(model(video.transpose(1, 2)).logits, truth, SIZES)

    model.load_state_dict(
        train("videomae", model, losses, steps=steps, learning_rate=1e-3, work=work, weight_decay=0.05, warmup=200)
    )
    return model.eval()
