"""Bootstrap intervals: known standard errors, coverage, and the shortcut for Frechet distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from mcm.errors import UserError
from mcm.evaluation.bootstrap import (
    bootstrap_interval,
    frechet_interval,
    mean_interval,
    ratio_interval,
    share_interval,
    weighted_distances,
)
from mcm.evaluation.frechet import FrechetStatistics, frechet_distance


def test_interval_of_the_mean_is_two_standard_errors_each_side() -> None:
    values = np.random.default_rng(0).standard_normal(400) * 3 + 10
    error = values.std() / math.sqrt(400)
    for low, high in (
        bootstrap_interval(lambda x: float(x.mean()), values, samples=2000),
        mean_interval(values, samples=2000),
    ):
        assert_allclose(
            [low, high], [values.mean() - 1.96 * error, values.mean() + 1.96 * error], atol=0.2 * error
        )


def test_mean_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    trials = 400
    hits = 0
    for seed in range(trials):
        low, high = mean_interval(rng.standard_normal(60), samples=300, level=0.9, seed=seed)
        hits += low <= 0.0 <= high
    assert 0.85 < hits / trials < 0.95


def test_interval_of_a_share_solves_wilsons_equation() -> None:
    for share, count in ((0.5, 100), (480 / 512, 512), (0.0, 20), (1.0, 20)):
        for end in share_interval(share, count):
            assert 0 <= end <= 1
            assert_allclose((share - end) ** 2, 1.959964**2 * end * (1 - end) / count, atol=1e-6)
    low, high = share_interval(1.0, 20)
    assert low < 0.9
    assert high == pytest.approx(1.0)


def test_pairing_removes_what_both_share() -> None:
    """Two arrays that differ by a constant: paired, their difference has no spread; unpaired, it has."""
    a = np.random.default_rng(2).standard_normal(100)

    def difference(x: np.ndarray, y: np.ndarray) -> float:
        return float(x.mean() - y.mean())

    low, high = bootstrap_interval(difference, a + 1, a, paired=True, samples=200)
    assert_allclose([low, high], [1.0, 1.0])
    low, high = bootstrap_interval(difference, a + 1, a[:50], paired=False, samples=200)
    assert high - low > 0.2


def test_ratio_interval_is_the_general_one() -> None:
    rng = np.random.default_rng(3)
    below = rng.uniform(1, 2, 300)
    above = 0.8 * below + rng.standard_normal(300) * 0.1
    low, high = ratio_interval(above, below, samples=3000)
    general = bootstrap_interval(lambda a, b: float(a.mean() / b.mean()), above, below, samples=3000)
    assert low < 0.8 < high
    assert_allclose([low, high], general, atol=0.1 * (high - low))
    assert_allclose(ratio_interval(0.8 * below, below), (0.8, 0.8))


def test_ratio_with_a_single_moving_denominator_has_no_finite_upper_end() -> None:
    below = np.array([1.0, 0.0, 0.0, 0.0])
    low, high = ratio_interval(np.ones(4), below)
    assert low < 4.0
    assert high == math.inf


@pytest.mark.parametrize("dimensions", [5, 40])
def test_weighted_distances_equal_those_of_the_resampled_features(dimensions: int) -> None:
    """Both branches: the matrix of dimensions and, with fewer samples than dimensions, that of samples."""
    rng = np.random.default_rng(4)
    features = rng.standard_normal((25, dimensions)) * rng.uniform(0.3, 3, dimensions) + 5
    reference = FrechetStatistics.from_features(rng.standard_normal((60, dimensions)))
    index = rng.integers(25, size=(4, 25))
    counts = np.stack([np.bincount(row, minlength=25) for row in index]).astype(float)
    expected = [frechet_distance(features[row], reference) for row in index]
    assert_allclose(weighted_distances(reference, features, counts), expected, rtol=1e-7)


@pytest.mark.parametrize(("dimensions", "n", "falling"), [(30, 60, 0.0), (30, 300, 5.0), (60, 40, 5.0)])
def test_frechet_interval_has_the_width_of_fresh_draws(dimensions: int, n: int, falling: float) -> None:
    """Against the truth: the spread of the distance over sets drawn anew, with few and many samples."""
    rng = np.random.default_rng(5)
    scale = np.exp(-falling * np.arange(dimensions) / dimensions)
    generated = scale * rng.uniform(0.7, 1.3, dimensions)
    reference = FrechetStatistics.from_features(rng.standard_normal((4000, dimensions)) * scale)

    def draw() -> np.ndarray:
        return rng.standard_normal((n, dimensions)) * generated + 0.3 * scale

    fresh = np.array([frechet_distance(draw(), reference) for _ in range(150)])
    truth = np.quantile(fresh, 0.975) - np.quantile(fresh, 0.025)
    widths, hits = [], 0
    for seed in range(12):
        features = draw()
        low, high = frechet_interval(reference, features, seed=seed)
        assert low < frechet_distance(features, reference) < high
        hits += low <= fresh.mean() <= high
        widths.append(high - low)
    assert 0.75 < np.mean(widths) / truth < 1.4
    assert hits >= 9


def test_frames_of_a_clip_are_drawn_together() -> None:
    """Repeating every clip's frame four times adds no information, so the interval must not shrink."""
    rng = np.random.default_rng(6)
    reference = FrechetStatistics.from_features(rng.standard_normal((500, 4)))
    clips = rng.standard_normal((80, 1, 4)) + 0.5
    low1, high1 = frechet_interval(reference, clips)
    low4, high4 = frechet_interval(reference, np.repeat(clips, 4, axis=1))
    assert_allclose(high4 - low4, high1 - low1, rtol=0.1)
    low, high = frechet_interval(reference, np.repeat(clips, 4, axis=1).reshape(-1, 4))
    assert high - low < 0.7 * (high1 - low1)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(7).standard_normal(30)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_bad_requests_are_named() -> None:
    with pytest.raises(UserError, match="1 clip"):
        mean_interval([1.0])
    with pytest.raises(UserError, match="at least 4"):
        frechet_interval(FrechetStatistics(np.zeros(2), np.eye(2), 9), np.ones((3, 2)))
    with pytest.raises(UserError, match="0 < level < 1"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(UserError, match=r"got 1\.2 of 10"):
        share_interval(1.2, 10)
    with pytest.raises(UserError, match="3 and 2 items"):
        bootstrap_interval(lambda a, b: 0.0, np.zeros(3), np.zeros(2))
    with pytest.raises(UserError, match="3 and 2 items"):
        ratio_interval(np.ones(3), np.ones(2))
