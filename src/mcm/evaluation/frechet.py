"""Frechet distance between two sets of features, read as Gaussians (Heusel et al. 2017, arXiv 1706.08500).

    d(a, b) = |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr( (S_a^1/2 S_b S_a^1/2)^1/2 )

The matrix under the last root is symmetric and positive semi-definite, so its eigenvalues are real and the
trace is the sum of their roots. That needs no general matrix square root, whose imaginary parts and failures
on singular matrices have to be patched away otherwise, and fewer samples than dimensions are no special case.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcm.errors import UserError

Array = NDArray[np.float64]


def checked_features(features: ArrayLike, what: str = "features") -> Array:
    """`features` as a float64 array (n, D).

    UserError when they have another shape, fewer than 2 rows, NaN or infinity."""
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2:
        raise UserError(f"{what} have shape {array.shape}: expected (samples, dimensions)")
    if len(array) < 2:
        raise UserError(
            f"{what} hold {len(array)} sample(s): a Frechet distance needs at least 2; give more clips"
        )
    bad = int((~np.isfinite(array).all(axis=1)).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(array)} samples of {what} are NaN or infinite: check the videos they came from"
        )
    return array


def trace_of_root(symmetric: Array) -> float:
    """tr(M^1/2) of a symmetric positive semi-definite matrix M (D, D)."""
    values = np.linalg.eigvalsh((symmetric + symmetric.T) / 2)
    # The root turns rounding of 1e-16 into 1e-8: eigenvalues that are zero but for rounding count as zero.
    floor = len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    return float(np.sqrt(values[values > floor]).sum())


@dataclass(frozen=True)
class FrechetStatistics:
    """Mean (D,), unbiased covariance (D, D) and number of samples: all a Frechet distance reads of a set.

    Computed once for the reference; its matrix root is computed on first use and kept.
    """

    mean: Array
    cov: Array
    n: int

    @classmethod
    def from_features(cls, features: ArrayLike, what: str = "features") -> FrechetStatistics:
        """Statistics of `features` (n, D), n >= 2."""
        array = checked_features(features, what)
        mean = array.mean(axis=0)
        centred = array - mean
        return cls(mean, centred.T @ centred / (len(array) - 1), len(array))

    @cached_property
    def root(self) -> Array:
        """S^1/2 (D, D), the symmetric root of the covariance."""
        values, vectors = np.linalg.eigh(self.cov)
        return (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T


def frechet_distance(a: ArrayLike | FrechetStatistics, b: ArrayLike | FrechetStatistics) -> float:
    """Frechet distance between two feature sets, each (n, D) features or their precomputed statistics.

    n may be smaller than D. The result is >= 0, in squared units of the features, symmetric up to rounding,
    and biased upwards by small samples: compare only distances at equal n. UserError for fewer than 2
    samples, NaN, or different D.
    """
    first = a if isinstance(a, FrechetStatistics) else FrechetStatistics.from_features(a)
    second = b if isinstance(b, FrechetStatistics) else FrechetStatistics.from_features(b)
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"features of {len(first.mean)} and {len(second.mean)} dimensions cannot be compared: "
            "both sets must come from the same network"
        )
    difference = first.mean - second.mean
    cross = trace_of_root(first.root @ second.cov @ first.root)
    distance = float(difference @ difference + np.trace(first.cov) + np.trace(second.cov) - 2.0 * cross)
    return max(distance, 0.0)  # equal sets come out as 0 up to rounding of either sign
