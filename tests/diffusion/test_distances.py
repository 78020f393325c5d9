from __future__ import annotations

import pytest
import torch

from mcm.diffusion import distance, l1, l2, pseudo_huber
from mcm.errors import UserError


def test_pseudo_huber_is_its_formula():
    a, b = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (((a - b) ** 2 + 0.01).sqrt() - 0.1).mean()
    torch.testing.assert_close(pseudo_huber(a, b, c=0.1), expected)


def test_pseudo_huber_is_a_square_near_and_a_modulus_far():
    zero = torch.zeros(1)
    near, far = torch.full((1,), 1e-6), torch.full((1,), 50.0)
    assert float(pseudo_huber(near, zero)) == pytest.approx(1e-12 / 2e-3, rel=1e-3)  # d^2 / (2 c), not 0
    assert float(pseudo_huber(far, zero)) == pytest.approx(50.0 - 1e-3, rel=1e-6)


@pytest.mark.parametrize("name", ["pseudo_huber", "l2", "l1"])
def test_distances_are_symmetric_zero_only_at_equality_and_of_mean_scale(name: str):
    d = distance(name)
    a, b = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    assert d(a, a) == 0
    assert d(a, b) == d(b, a)
    assert d(a, b) > 0.1
    torch.testing.assert_close(d(torch.cat([a, a]), torch.cat([b, b])), d(a, b))
    assert d(a, b).shape == ()


def test_gradient_at_equality_is_zero_not_nan():
    a = torch.zeros(4, requires_grad=True)
    pseudo_huber(a, torch.zeros(4)).backward()
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros(4))


def test_values():
    a, b = torch.tensor([1.0, -3.0]), torch.tensor([0.0, 0.0])
    assert l2(a, b) == 5.0
    assert l1(a, b) == 2.0


def test_half_precision_is_measured_in_single():
    a, b = torch.ones(4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16)
    assert l2(a, b).dtype == torch.float32
    assert float(pseudo_huber(a, b)) == pytest.approx(0.999, abs=1e-4)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        l2(torch.zeros(2, 3), torch.zeros(3))


def test_unknown_distance_is_named():
    assert distance("pseudo-huber") is pseudo_huber
    with pytest.raises(UserError, match="did you mean 'pseudo_huber'"):
        distance("pseudo_hubr")
