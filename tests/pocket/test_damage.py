"""Damage of known strength, and that the laboratory's Frechet video distance grows with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcm.evaluation.fvd import VideoFeatures, fvd
from mcm.pocket import world, zoo
from mcm.pocket.training.damage import KINDS, damaged, strengths


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return world.film([world.spec("pictures", i) for i in range(64)], "broadcast").video


def of_one_kind(video: Tensor, kind: str, strength: float) -> Tensor:
    """The clips with this damage alone, drawn alike for every strength."""
    given = torch.zeros(len(video), len(KINDS))
    given[:, KINDS.index(kind)] = strength
    return damaged(video, given, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_none_at_no_strength_and_grows_with_it(kind: str, clips: Tensor) -> None:
    some = clips[:8]
    torch.testing.assert_close(of_one_kind(some, kind, 0.0), some, atol=1e-5, rtol=0)
    half, whole = ((of_one_kind(some, kind, s) - some).abs().mean() for s in (0.5, 1.0))
    assert 0.002 < half < whole


def test_each_kind_is_what_it_is_called(clips: Tensor) -> None:
    some = clips[:8]
    assert of_one_kind(some, "contrast", 1.0).std() > some.std() > of_one_kind(some, "contrast", -1.0).std()
    edges = [v.diff(dim=-1).abs().mean() for v in (some, of_one_kind(some, "blur", 1.0))]
    assert edges[1] < 0.7 * edges[0]
    still = some[:, :, :1].expand_as(some)  # ghosts are of other frames: a still clip has none
    torch.testing.assert_close(of_one_kind(still, "ghosts", 1.0), still, atol=1e-5, rtol=0)
    flicker = of_one_kind(still, "flicker", 1.0) - still  # a frame at a time, all of it alike
    assert flicker.std(dim=(1, 3, 4)).max() < 1e-5 < flicker.std(dim=2).min()


def test_strengths_are_drawn_by_the_generator() -> None:
    drawn = strengths(4000, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, strengths(4000, torch.Generator().manual_seed(1)))
    present = (drawn != 0).float().mean(0)
    torch.testing.assert_close(present, torch.full((len(KINDS),), 0.35), atol=0.03, rtol=0)
    signed = drawn[:, KINDS.index("contrast")]
    assert signed.min() < -0.9 < 0.9 < signed.max()
    assert drawn[:, [k for k, name in enumerate(KINDS) if name != "contrast"]].min() >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_frechet_distance_grows_with_damage(kind: str, clips: Tensor) -> None:
    """As its inventors tested theirs (arXiv 1812.01717, section 4): the same clips, damaged more and more."""
    features = VideoFeatures(zoo.VIDEO_FEATURES)
    clean = features(clips)
    distances = [fvd(features(of_one_kind(clips, kind, s).clamp(-1, 1)), clean) for s in (0.0, 0.3, 0.6, 1.0)]
    assert distances[0] < 0.01
    assert distances == sorted(distances)
    # Ghosts, noise and holes it sees hardly yet (docs/log.md): they grow, but stay small.
    assert distances[-1] > (0.3 if kind in ("blur", "contrast", "warp", "flicker") else 0.01)
