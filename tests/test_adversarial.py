from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mcm.adversarial import AdversarialLoss, gradient_penalty
from mcm.errors import UserError

NAMES = ["hinge", "wasserstein", "bce"]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("hinge", -0.25, (0 + 0.5) / 2 + (1.5 + 0) / 2),
        ("wasserstein", -0.25, -0.75 - 1.25),
        ("bce", (softplus(-0.5) + softplus(0.0)) / 2, None),
    ],
)
def test_values_by_hand(name: str, generator: float, discriminator: float | None):
    game = AdversarialLoss(name)
    assert float(game.generator(torch.tensor([0.5, 0.0]))) == pytest.approx(generator)
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([0.5, -2.0])
    if discriminator is None:
        discriminator = (softplus(-2) + softplus(-0.5) + softplus(0.5) + softplus(-2)) / 2
    assert float(game.discriminator(real, fake)) == pytest.approx(discriminator)


@pytest.mark.parametrize("name", NAMES)
def test_each_player_pulls_its_own_way(name: str):
    game = AdversarialLoss(name)
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    up, down = torch.autograd.grad(game.discriminator(real, fake), [real, fake])
    assert (up < 0).all()  # descent raises the real ones' logits
    assert (down > 0).all()
    assert (torch.autograd.grad(game.generator(fake), fake)[0] < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_rejected_is_the_made_half_of_the_loss(name: str):
    game = AdversarialLoss(name)
    real, a, b = torch.tensor([2.0, 0.5]), torch.tensor([0.5, -0.7]), torch.tensor([-0.2, 0.9])
    both = game.discriminator(real, a) - game.discriminator(real, b)
    torch.testing.assert_close(game.rejected(a) - game.rejected(b), both)
    assert float(game.rejected(a)) != pytest.approx(float(game.rejected(b)))


@pytest.mark.parametrize("name", NAMES)
def test_heads_weigh_the_same_whatever_their_size(name: str):
    game = AdversarialLoss(name)
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 1, generator=rng), torch.randn(4, 7, 3, generator=rng)
    both = (game.generator(a) + game.generator(b)) / 2
    torch.testing.assert_close(game.generator([a, b]), both)
    torch.testing.assert_close(game.generator([b, b]), game.generator(b))
    parts = (game.discriminator(a, -a) + game.discriminator(b, -b)) / 2
    torch.testing.assert_close(game.discriminator([a, b], [-a, -b]), parts)


def test_hinge_lets_go_of_what_is_settled():
    real, fake = torch.tensor([1.5, 3.0], requires_grad=True), torch.tensor([-1.5, -2.0], requires_grad=True)
    loss = AdversarialLoss("hinge").discriminator(real, fake)
    assert loss == 0
    assert all(g.abs().sum() == 0 for g in torch.autograd.grad(loss, [real, fake]))


def test_bce_does_not_overflow():
    game = AdversarialLoss("bce")
    far = torch.tensor([-1e4, -1e4])
    assert float(game.generator(far)) == pytest.approx(1e4)
    assert math.isfinite(float(game.discriminator(far, -far)))


def test_unknown_loss_is_named():
    with pytest.raises(UserError, match="did you mean 'hinge'"):
        AdversarialLoss("hinged")


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_penalty_of_a_linear_critic_is_its_squared_weight():
    w, x = rows(5), rows(8, 5, seed=1).requires_grad_()
    torch.testing.assert_close(gradient_penalty(x @ w, [x]), w.square().sum())


def test_penalty_of_a_square_is_the_mean_of_four_squares():
    x = rows(8, 3, 2).requires_grad_()
    found = gradient_penalty((x**2).sum((1, 2)), [x])
    torch.testing.assert_close(found, 4 * x.detach().square().sum((1, 2)).mean())


def test_penalty_adds_over_heads_and_inputs():
    x, y = rows(4, 3).requires_grad_(), rows(4, 2, 6, seed=1).requires_grad_()
    u, v = rows(3, seed=2), rows(6, seed=3)
    found = gradient_penalty([x @ u, y @ v], [x, y])  # the second head has two logits a picture
    torch.testing.assert_close(found, u.square().sum() + 2 * v.square().sum())
    # Two heads on one input: gradients add before the square.
    torch.testing.assert_close(gradient_penalty([x @ u, x @ u], [x]), 4 * u.square().sum())


def test_penalty_does_not_depend_on_the_number_of_pictures():
    w, x = rows(5), rows(8, 5, seed=1)
    few, many = x.clone().requires_grad_(), x.repeat(3, 1).requires_grad_()
    one, three = (gradient_penalty((k @ w).tanh(), [k]) for k in (few, many))
    torch.testing.assert_close(one, three)


def test_penalty_teaches_the_weights():
    w, x = rows(5).requires_grad_(), rows(8, 5, seed=1).requires_grad_()
    gradient_penalty(x @ w, [x]).backward()
    torch.testing.assert_close(w.grad, 2 * w.detach())


def test_penalty_refuses_inputs_that_the_logits_do_not_use():
    x, other = rows(4, 3).requires_grad_(), rows(4, 3, seed=1).requires_grad_()
    with pytest.raises(RuntimeError, match="not have been used"):
        gradient_penalty(x.sum(1), [x, other])
