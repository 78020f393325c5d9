from __future__ import annotations

import pytest
import torch

from mcm.diffusion import RectifiedFlow, SolverGrid, VariancePreserving
from mcm.errors import UserError

VP = VariancePreserving(torch.linspace(0.00085, 0.012, 1000))


def test_fifty_steps_are_the_times_of_latent_consistency_models():
    grid = SolverGrid(VP, 50)
    assert grid.timesteps.tolist() == list(range(19, 1000, 20))
    assert not grid.timesteps.is_floating_point()


def test_neighbour_is_the_next_time_below_and_zero_under_the_first():
    grid = SolverGrid(VP, 50)
    t = torch.tensor([19, 39, 40, 999, 5, 0])
    assert grid.neighbour(t).tolist() == [0, 19, 39, 979, 0, 0]
    assert grid.neighbour(t.float()).tolist() == [0, 19, 39, 979, 0, 0]


def test_every_pair_is_drawn_and_none_other():
    grid = SolverGrid(VP, 5)
    t, s = grid.draw(400, torch.Generator().manual_seed(0))
    pairs = set(zip(t.tolist(), s.tolist(), strict=True))
    assert pairs == {(199, 0), (399, 199), (599, 399), (799, 599), (999, 799)}
    counts = torch.bincount(t // 200)
    assert counts.min() > 50  # 80 each on average


def test_the_draw_belongs_to_the_generator():
    grid = SolverGrid(VP)
    first, again, other = (grid.draw(16, torch.Generator().manual_seed(k))[0] for k in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_flows_grid_is_shifted_towards_the_noise():
    grid = SolverGrid(RectifiedFlow(shift=3.0), 4)
    expected = [3 * u / (1 + 2 * u) * 1000 for u in (0.25, 0.5, 0.75, 1.0)]
    torch.testing.assert_close(grid.timesteps, torch.tensor(expected))
    t, s = grid.draw(8, torch.Generator().manual_seed(0))
    assert (t > s).all()
    assert grid.neighbour(grid.timesteps).tolist() == [0.0, *grid.timesteps[:-1].tolist()]


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_steps_are_refused(steps: int):
    with pytest.raises(UserError, match=f"1 to 1000 steps, got {steps}"):
        SolverGrid(VP, steps)
