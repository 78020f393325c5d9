"""The augmentations do what they say, for each frame by itself, and let gradients through."""

from __future__ import annotations

import pytest
import torch

from mcm.models.augment import HOLE, POLICY, augment, colour, cutout, translate


def frames(count: int = 3, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_colour() -> None:
    x = frames(1)
    one, zero = torch.ones(1), torch.zeros(1)
    torch.testing.assert_close(colour(x, zero, one, one), x)
    torch.testing.assert_close(colour(x, zero + 0.3, one, one), x + 0.3)
    grey = colour(x, zero, zero, one)
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = colour(x, zero, one, 0.5 * one)
    torch.testing.assert_close(flat.mean(), x.mean())
    torch.testing.assert_close(flat.std(), 0.5 * x.std())


def test_translation_moves_by_whole_pixels_and_fills_with_grey() -> None:
    x = frames(3)
    still = torch.full((3,), 0.5)
    assert torch.equal(translate(x, still, still), x)
    moved = translate(x, torch.tensor([0.0, 0.5, 0.999]), torch.tensor([0.5, 0.999, 0.0]))
    assert torch.equal(moved[0, :, 2:], x[0, :, :-2])  # 16 / 8 = 2 rows
    assert not moved[0, :, :2].any()
    assert torch.equal(moved[1, :, :, :-3], x[1, :, :, 3:])  # 24 / 8 = 3 columns
    assert torch.equal(moved[2, :, :-2, 3:], x[2, :, 2:, :-3])


def test_the_hole_has_half_the_sides_and_may_hang_over() -> None:
    x = torch.ones(3, 3, 16, 24)
    holes = cutout(x, torch.tensor([0.5, 0.0, 0.999]), torch.tensor([0.5, 0.0, 0.999]))
    assert (holes == 0).flatten(1).sum(1).tolist() == [3 * 8 * 12, 3 * 4 * 6, 3 * 5 * 7]
    assert not holes[0, :, 4:12, 6:18].any()


def test_every_frame_gets_its_own_draw_and_the_draw_is_reproducible() -> None:
    x = frames(1).expand(4, -1, -1, -1)
    made = augment(x, torch.Generator().manual_seed(3))
    assert torch.equal(made, augment(x, torch.Generator().manual_seed(3)))
    assert not torch.equal(made, augment(x, torch.Generator().manual_seed(4)))
    assert len({float(frame.mean()) for frame in made}) == 4


def test_gradients_are_exact() -> None:
    x = frames(2, 8, 8).double().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda v: augment(v, torch.Generator().manual_seed(1)), (x,), fast_mode=True
    )


def test_strength_scales_every_range_and_none_changes_nothing() -> None:
    x = frames(4, 32, 32)
    torch.testing.assert_close(augment(x, torch.Generator().manual_seed(3), 0.0), x)
    flat = torch.zeros(256, 3, 32, 32)  # brightness alone shows on it, and where the hole is it is 0 again
    for strength in (0.25, 0.5, 1.0):
        made = augment(flat, torch.Generator().manual_seed(5), strength)
        largest = float(made.abs().amax())
        assert 0.95 * 0.5 * strength < largest <= 0.5 * strength
    ones = torch.ones(3, 3, 16, 16)
    hole = cutout(ones, *torch.full((2, 3), 0.5), hole=0.25)
    assert (hole == 0).flatten(1).sum(1).tolist() == [3 * 4 * 4] * 3
    moved = translate(ones, *torch.full((2, 3), 0.999), shift=0.0625)
    assert int((moved[0, 0] != 0).sum()) == 15 * 15


@pytest.mark.parametrize("kind", POLICY)
def test_a_policy_leaves_the_other_kinds_out(kind):
    """Alone each kind does what it does among the others: the draws are the same."""
    x = torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    alone = augment(x, torch.Generator().manual_seed(3), 1.0, (kind,))
    draws = torch.rand((4, 7), generator=torch.Generator().manual_seed(3))
    b, s, c, *places = draws.unbind(-1)
    wanted = {
        "color": colour(x, b - 0.5, 2 * s, 0.5 + c), "translation": translate(x, places[0], places[1]),
        "cutout": cutout(x, places[2], places[3], HOLE),
    }  # fmt: skip
    torch.testing.assert_close(alone, wanted[kind])
    assert not torch.equal(alone, x)
    assert torch.equal(augment(x, torch.Generator().manual_seed(3), 1.0, ()), x)
