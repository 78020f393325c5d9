"""The augmentations do what they say, for each frame by itself, and let gradients through."""

from __future__ import annotations

import torch

from mcm.models.augment import augment, colour, cutout, translate


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
