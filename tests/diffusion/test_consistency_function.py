from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler

from mcm.diffusion import ConsistencyFunction
from mcm.errors import UserError


def test_at_the_clean_end_it_is_the_identity():
    f = ConsistencyFunction()
    z, x0 = torch.randn(2, 3, 4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    for t in (torch.zeros(3), torch.zeros(3, dtype=torch.long), torch.full((3,), -1)):
        assert torch.equal(f(z, t, x0), z)


def test_its_two_shares_as_the_paper_states_them():
    f = ConsistencyFunction(sigma_data=0.5, timestep_scaling=4.0)
    t = torch.tensor([0.1, 1.0])
    torch.testing.assert_close(f.c_skip(t), torch.tensor([0.25 / (0.16 + 0.25), 0.25 / 16.25]))
    torch.testing.assert_close(f.c_out(t), torch.tensor([0.4 / 0.41**0.5, 4 / 16.25**0.5]))
    # Far from the clean end it is the denoiser's word.
    assert f.c_out(torch.tensor([999])) > 0.999999
    torch.testing.assert_close(f.c_skip(t), 1 - f.c_out(t) ** 2)


@pytest.mark.parametrize("scaling", [4.0, 10.0])
def test_shares_are_diffusers(scaling: float):
    theirs = LCMScheduler(timestep_scaling=scaling)
    f = ConsistencyFunction(timestep_scaling=scaling)
    for t in (0, 1, 19, 499, 999):
        skip, out = theirs.get_scalings_for_boundary_condition_discrete(t)
        assert float(f.c_skip(torch.tensor([t]))) == pytest.approx(skip, rel=1e-5)
        assert float(f.c_out(torch.tensor([t]))) == pytest.approx(out, rel=1e-5)


def test_each_clip_has_its_own_time():
    f = ConsistencyFunction()
    z, x0 = torch.ones(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1)
    found = f(z, torch.tensor([0.0, 0.125]), x0).flatten()
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5]))


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="timestep_scaling > 0"):
        ConsistencyFunction(timestep_scaling=0.0)
