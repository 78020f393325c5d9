"""Training of the judge, on rendered clips only: the world's questions, and the joints as a help to read actions.

(Asked the questions alone, it told shirts apart after 350 steps and still guessed at actions.)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mcm.pocket.judge import Judge
from mcm.pocket.training.corpus import Domains
from mcm.pocket.training.labels import answers
from mcm.pocket.training.loop import Losses, train

COUNTS = {"broadcast": 3000, "studio": 750, "toon": 500, "relief": 500}


def varied(video: Tensor, rng: torch.Generator) -> Tensor:
    """Blur, contrast and noise of a clip varied, so that a sample's own faults are not mistaken for another answer."""
    shape = (len(video), 1, 1, 1, 1)
    soft = F.avg_pool3d(F.pad(video, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), stride=1)
    video = video + 0.8 * torch.rand(shape, generator=rng) * (soft - video)
    video = video * (0.8 + 0.4 * torch.rand(shape, generator=rng)) + 0.1 * torch.randn(shape, generator=rng)
    return video + 0.06 * torch.rand(shape, generator=rng) * torch.randn(video.shape, generator=rng)


def fit(work: Path, steps: int = 2500, batch: int = 16) -> Judge:
    """Train on the split "judge": every combination, the held-out ones too, since it must know them to judge them."""
    model = Judge()
    domains = Domains(work, "judge", COUNTS)

    def losses(step: int, rng: torch.Generator) -> Losses:
        drawn = domains.draw(rng, batch)
        truth = answers(drawn.specs)
        looks = model.looks(varied(drawn.clips(), rng))
        parts = {q: F.cross_entropy(v, truth[q]) for q, v in model.answer(looks).items()}
        return parts | {"joints": 20 * (model.follow(looks) - drawn.joints).abs().mean()}

    model.load_state_dict(train("judge", model, losses, steps=steps, learning_rate=2e-3, work=work))
    return model.eval()
