"""Bootstrap intervals (Efron 1979): how far a metric would move if other clips had been drawn. Of shares, Wilson's.

An item is a clip: what belongs to one clip (its frames, the student's and the teacher's video of one seed) is
drawn together. Everything is float64 numpy and repeatable from `seed`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcm.errors import UserError
from mcm.evaluation.frechet import Array, FrechetStatistics, checked_features, trace_of_root

Interval = tuple[float, float]


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    paired: bool = True,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic(*arrays)`, the arrays resampled along their first axis.

    paired: the i-th items of all arrays are drawn together; otherwise each array on its own.
    level: share of the resampled values inside the interval.
    UserError for fewer than 2 items or unequal paired lengths.
    """
    data = [np.asarray(array) for array in arrays]
    lengths = [len(array) for array in data]
    if paired and len(set(lengths)) > 1:
        raise UserError(
            f"paired arrays of {' and '.join(map(str, lengths))} items: expected the same number in each"
        )
    for length in lengths:
        _check(length, samples, level)
    rng = np.random.default_rng(seed)
    values = np.empty(samples)
    for i in range(samples):
        if paired:
            index = rng.integers(lengths[0], size=lengths[0])
            values[i] = statistic(*(array[index] for array in data))
        else:
            values[i] = statistic(*(array[rng.integers(len(array), size=len(array))] for array in data))
    return _percentiles(values, level)


def mean_interval(values: ArrayLike, samples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values` (n,): all resamples in one product."""
    array = np.asarray(values, dtype=np.float64)
    return _percentiles(_counts(len(array), samples, level, seed) @ array / len(array), level)


def share_interval(share: float, count: int, level: float = 0.95) -> Interval:
    """Wilson's interval (1927) of a share of `count` clips, a whole number of them; within 0 and 1, also near the ends.

    UserError for a share outside of 0 and 1 or fewer than 1 clips."""
    if not 0 <= share <= 1 or count < 1:
        raise UserError(f"interval of a share: expected 0 to 1 of 1 clip at least, got {share:g} of {count}")
    from scipy.stats import binomtest  # takes a second to load

    found = binomtest(round(share * count), count).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of mean(numerator) / mean(denominator), both (n,), non-negative and paired.

    A resample whose denominators are all 0 counts as infinity, so the upper end may be infinite."""
    above, below = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if above.shape != below.shape:
        raise UserError(
            f"paired arrays of {len(above)} and {len(below)} items: expected the same number in each"
        )
    counts = _counts(len(above), samples, level, seed)
    bottom = counts @ below
    ratios = np.full(samples, np.inf)
    np.divide(counts @ above, bottom, out=ratios, where=bottom > 0)
    return _percentiles(ratios, level)


def frechet_interval(
    reference: FrechetStatistics, features: ArrayLike, samples: int = 100, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the Frechet distance of `features` to `reference`.

    features: (n, D), or (n, k, D) for k frames a clip, whose frames are drawn together.

    Only the generated side is resampled: the reference is the fixed yardstick that all rows of a report
    share, and its matrix root is computed once. Each resample still costs the eigenvalues of a matrix of side
    min(n k, D), hence the few resamples.

    The clips are drawn without replacement, half of them each time (half-samples; subsampling: Politis and
    Romano 1994). Drawing n with replacement repeats clips, which shrinks the rank of the covariance: with n
    near D that gave intervals up to 3.7 times too wide, wholly above the estimate; half-samples gave 0.9 to
    1.3 times the spread of fresh draws. Half-samples are biased too, having half the clips, so their
    spread is taken about their own mean and laid around the estimate: the interval shows what other clips
    would have given *at this n*, not the bias of n. UserError for fewer than 4 clips.
    """
    array = np.asarray(features, dtype=np.float64)
    frames = array.shape[1] if array.ndim == 3 else 1
    flat = checked_features(array.reshape(-1, array.shape[-1]))
    clips = len(flat) // frames
    _check(clips, samples, level, least=4)
    half = clips // 2
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(clips), (samples, 1)), axis=1)
    drawn = np.vstack([np.ones(clips), (order < half).astype(np.float64)])
    estimate, *resampled = weighted_distances(reference, flat, drawn.repeat(frames, axis=1))
    deviations = np.array(resampled) - np.mean(resampled)
    # Drawing m of n without replacement scatters a mean by sqrt(1/m - 1/n), fresh sets of n by sqrt(1/n).
    low, high = _percentiles(deviations * np.sqrt(half / (clips - half)), level)
    return max(float(estimate) + low, 0.0), max(float(estimate) + high, 0.0)


def weighted_distances(reference: FrechetStatistics, features: Array, counts: Array) -> Array:
    """Frechet distances (S,) of S resamples of `features` (n, D), the j-th holding row i counts[j, i] times.

    With Y = X S_ref^1/2 the matrix S_ref^1/2 S_x S_ref^1/2 is Y^T W Y / (m - 1) for centred rows. It has the
    same non-zero eigenvalues as the n x n matrix W^1/2 Y Y^T W^1/2 / (m - 1), and the smaller of the two is
    decomposed.
    """
    if features.shape[1] != len(reference.mean):
        raise UserError(
            f"features of {features.shape[1]} and {len(reference.mean)} dimensions cannot be compared: "
            "both sets must come from the same network"
        )
    # Centred once over all rows: the mean of a resample is then small and its subtraction loses no digits.
    origin = features.mean(axis=0)
    centred = features - origin
    projected = centred @ reference.root
    squares = (centred**2).sum(axis=1)
    trace_reference = float(np.trace(reference.cov))
    distances = np.empty(len(counts))
    for j, count in enumerate(counts):
        total = count.sum()
        mean = count @ centred / total
        difference = origin + mean - reference.mean
        trace = (count @ squares - total * (mean @ mean)) / (total - 1)
        drawn = count > 0
        rows = (projected[drawn] - count @ projected / total) * np.sqrt(count[drawn, None] / (total - 1))
        gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
        distances[j] = difference @ difference + trace_reference + trace - 2.0 * trace_of_root(gram)
    return distances


def _check(length: int, samples: int, level: float, least: int = 2) -> None:
    if length < least:
        raise UserError(f"an interval from {length} clip(s) means nothing: give at least {least}")
    if samples < 1 or not 0.0 < level < 1.0:
        raise UserError(
            f"bootstrap with samples={samples}, level={level}: expected samples >= 1 and 0 < level < 1"
        )


def _counts(length: int, samples: int, level: float, seed: int) -> Array:
    """How often each item is drawn in each resample (samples, length), `length` draws each."""
    _check(length, samples, level)
    drawn = np.random.default_rng(seed).multinomial(length, np.full(length, 1.0 / length), size=samples)
    return drawn.astype(np.float64)


def _percentiles(values: NDArray[np.float64], level: float) -> Interval:
    # "higher"/"lower" pick existing values: interpolation would turn an infinite resample into NaN.
    tail = (1.0 - level) / 2
    low = np.quantile(values, tail, method="lower")
    high = np.quantile(values, 1.0 - tail, method="higher")
    return float(low), float(high)
