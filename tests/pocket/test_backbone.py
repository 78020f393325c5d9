"""The zoo's backbone, by what it is for: a discriminator on it can tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcm.adversarial import AdversarialLoss
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.features import FrozenFeatures
from mcm.pocket import world


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Frames (512, 3, 64, 64) of broadcast clips."""
    video = world.film([world.spec("pictures", i) for i in range(64)], "broadcast").video
    return video.transpose(1, 2).flatten(0, 1)


def test_a_discriminator_on_it_soon_tells_frames_whose_figure_dissolves(frames: Tensor) -> None:
    """Hinge losses are 2 by chance; those on frames that it was not trained on are well below."""
    rng = torch.Generator().manual_seed(0)
    soft = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(frames, 4), scale_factor=4.0, mode="bilinear")
    fakes = frames.clone()
    fakes[:, :, 16:56, 16:48] = 0.5 * (fakes + soft)[:, :, 16:56, 16:48]  # where the figure is
    judge = FrameDiscriminator(FrozenFeatures.load("pocket-dinov2"), 64, conditioning=False, augment=0.0, rng=rng)
    optimizer, loss = torch.optim.Adam(judge.trainable().values(), lr=2e-3), AdversarialLoss("hinge")
    for _ in range(60):
        real, fake = (x[torch.randint(384, (16,), generator=rng)] for x in (frames, fakes))
        optimizer.zero_grad()
        loss.discriminator(judge(real), judge(fake)).backward()
        optimizer.step()
    with torch.no_grad():
        assert loss.discriminator(judge(frames[384::2]), judge(fakes[385::2])) < 1.5
