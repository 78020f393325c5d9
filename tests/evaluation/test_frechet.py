"""The Frechet distance against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import ArrayLike

from mcm.errors import UserError
from mcm.evaluation.frechet import FrechetStatistics, frechet_distance


def gaussian(mean: ArrayLike, cov: ArrayLike) -> FrechetStatistics:
    return FrechetStatistics(np.asarray(mean, float), np.asarray(cov, float), 1000)


def rotation(dimensions: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0]


def covariance(dimensions: int, rng: np.random.Generator) -> np.ndarray:
    factor = rng.standard_normal((dimensions, dimensions))
    return factor @ factor.T / dimensions + 0.1 * np.eye(dimensions)


def test_one_dimension_is_difference_of_means_and_deviations() -> None:
    assert_allclose(frechet_distance(gaussian([1.0], [[4.0]]), gaussian([3.0], [[9.0]])), 4.0 + 1.0)


def test_commuting_covariances_compare_deviation_by_deviation() -> None:
    rng = np.random.default_rng(0)
    turn = rotation(12, rng)
    a, b, shift = rng.uniform(0.1, 5, 12), rng.uniform(0.1, 5, 12), rng.standard_normal(12)
    found = frechet_distance(gaussian(np.zeros(12), turn * a @ turn.T), gaussian(shift, turn * b @ turn.T))
    assert_allclose(found, shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rtol=1e-10)


def test_equals_scipy_for_general_covariances() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    for dimensions in (3, 20):
        a, b = covariance(dimensions, rng), covariance(dimensions, rng)
        mean = rng.standard_normal(dimensions)
        expected = mean @ mean + np.trace(a + b - 2 * np.real(linalg.sqrtm(a @ b)))
        found = frechet_distance(gaussian(np.zeros(dimensions), a), gaussian(mean, b))
        assert_allclose(found, expected, rtol=1e-9)


def test_symmetric_and_unchanged_by_rotation_and_shift() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((50, 8)), rng.standard_normal((70, 8)) * rng.uniform(0.5, 2, 8) + 0.3
    turn, shift = rotation(8, rng), rng.standard_normal(8)
    expected = frechet_distance(a, b)
    assert_allclose(frechet_distance(b, a), expected, rtol=1e-9)
    assert_allclose(frechet_distance(a @ turn + shift, b @ turn + shift), expected, rtol=1e-9)
    assert_allclose(frechet_distance(3 * a, 3 * b), 9 * expected, rtol=1e-9)


@pytest.mark.parametrize("samples", [100, 6, 2])
def test_equal_sets_are_at_distance_zero_even_with_fewer_samples_than_dimensions(samples: int) -> None:
    features = np.random.default_rng(3).standard_normal((samples, 30)) * 10
    assert frechet_distance(features, features[::-1]) < 1e-6
    assert_allclose(frechet_distance(features, features + 0.5), 30 * 0.25, rtol=1e-6)


def test_rank_deficient_sets_equal_the_same_sets_in_their_own_subspace() -> None:
    """7 and 9 samples of 4 numbers hidden in 40 dimensions: the 36 empty directions contribute nothing."""
    rng = np.random.default_rng(4)
    basis = rotation(40, rng)[:, :4]
    a, b = rng.standard_normal((7, 4)), rng.standard_normal((9, 4)) * 2 + 1
    assert_allclose(frechet_distance(a @ basis.T, b @ basis.T), frechet_distance(a, b), rtol=1e-7)


def test_constant_sets_compare_by_their_means_alone() -> None:
    a, b = np.zeros((5, 3)), np.full((5, 3), 2.0)
    assert_allclose(frechet_distance(a, b), 12.0)


def test_samples_approach_the_distance_of_their_gaussians() -> None:
    rng = np.random.default_rng(5)
    a, b = covariance(4, rng), covariance(4, rng)
    truth = frechet_distance(gaussian(np.zeros(4), a), gaussian(np.ones(4), b))
    x, y = rng.multivariate_normal(np.zeros(4), a, 40_000), rng.multivariate_normal(np.ones(4), b, 40_000)
    assert_allclose(frechet_distance(x, y), truth, rtol=0.03)


def test_statistics_stand_for_their_features() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((20, 5)), rng.standard_normal((30, 5)) + 1
    statistics = FrechetStatistics.from_features(b)
    assert statistics.n == 30
    assert_allclose(statistics.cov, np.cov(b, rowvar=False))
    assert_allclose(statistics.root @ statistics.root, statistics.cov, atol=1e-12)
    assert frechet_distance(a, statistics) == frechet_distance(a, b)


@pytest.mark.parametrize(
    ("features", "word"),
    [
        (np.zeros((1, 4)), "at least 2"),
        (np.array([[0.0, 1.0], [np.nan, 1.0], [0.0, 2.0]]), "1 of 3 samples"),
        (np.array([[0.0, np.inf], [0.0, 1.0]]), "infinite"),
        (np.zeros(4), "shape"),
        (np.zeros((5, 3)), "same network"),
    ],
)
def test_what_cannot_be_compared_is_named(features: np.ndarray, word: str) -> None:
    other = np.random.default_rng(7).standard_normal((6, 4 if features.shape[-1] != 2 else 2))
    with pytest.raises(UserError, match=word):
        frechet_distance(features, other)
