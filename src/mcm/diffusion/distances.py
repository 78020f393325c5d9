"""Distances between two consistency targets. Each: two tensors of one shape -> a float32 scalar."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mcm.errors import one_of


def pseudo_huber(a: Tensor, b: Tensor, c: float = 1e-3) -> Tensor:
    """Mean of sqrt((a - b)^2 + c^2) - c: a square below c, a modulus above it (arXiv 2310.14189)."""
    square = _difference(a, b).square()
    # The same number without the cancellation of two nearly equal ones.
    return (square / ((square + c * c).sqrt() + c)).mean()


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a - b)^2."""
    return _difference(a, b).square().mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean of |a - b|."""
    return _difference(a, b).abs().mean()


def distance(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance called "pseudo_huber" (or "pseudo-huber"), "l2" or "l1"; UserError on another name."""
    known: dict[str, Callable[[Tensor, Tensor], Tensor]] = {f.__name__: f for f in (pseudo_huber, l2, l1)}
    if name.replace("-", "_") not in known:
        raise one_of("distance", name, known)
    return known[name.replace("-", "_")]


def _difference(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        # Broadcasting would give a number, and a wrong one.
        raise ValueError(
            f"a distance needs two tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    wide = a - b
    return wide if wide.dtype.itemsize >= 4 else a.float() - b.float()
