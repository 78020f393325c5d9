from __future__ import annotations

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from mcm.diffusion.paths import (
    Denoised,
    NoisePath,
    RectifiedFlow,
    VariancePreserving,
    expand,
    path_from_config,
)
from mcm.errors import UserError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = VariancePreserving.from_config(SD)
FLOW = RectifiedFlow(shift=3.0)

CONFIGS = [
    SD,
    {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {**SD, "num_train_timesteps": 400},
    {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"trained_betas": [0.1, 0.2, 0.3]},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values()))[:40])
def test_alphas_are_those_of_diffusers(config: dict):
    theirs = DDIMScheduler.from_config(config)
    path = path_from_config(theirs.config)
    assert isinstance(path, VariancePreserving)
    times = torch.arange(len(theirs.alphas_cumprod))
    assert path.t_max == times[-1]
    torch.testing.assert_close(path.alpha(times) ** 2, theirs.alphas_cumprod, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(path.sigma(times) ** 2, 1 - theirs.alphas_cumprod, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("zero", [True, False])
def test_the_snr_shift_is_cogvideoxs(scale: float, zero: bool):
    theirs = CogVideoXDDIMScheduler(
        **SD, snr_shift_scale=scale, rescale_betas_zero_snr=zero, prediction_type="v_prediction"
    )
    path = path_from_config({**theirs.config, "_class_name": "CogVideoXDDIMScheduler"})
    times = torch.arange(1000)
    torch.testing.assert_close(path.alpha(times).double() ** 2, theirs.alphas_cumprod.double(), atol=1e-6, rtol=1e-4)
    bare = path_from_config({**SD, "rescale_betas_zero_snr": zero, "prediction_type": "v_prediction"})
    assert (path.alpha(times)[-1] == 0) == zero
    if not zero:  # the ratio of signal to noise itself is divided
        shift = bare.log_snr(times) - path.log_snr(times)
        torch.testing.assert_close(shift, torch.full_like(shift, math.log(scale)), atol=1e-3, rtol=0)


def test_zero_terminal_snr_ends_at_pure_noise():
    path = VariancePreserving.from_config({**SD, "rescale_betas_zero_snr": True})
    ends = torch.tensor([998, 999])
    assert path.alpha(ends)[1] == 0
    assert path.sigma(ends)[1] == 1
    assert path.alpha(ends)[0] > 0
    assert path.log_snr(ends)[1] == -math.inf
    assert not path.alpha(torch.tensor([998.5, 999.0])).isnan().any()
    z, noise = torch.full((1, 2), 0.7), torch.full((1, 2), 0.2)
    x0, eps = path.read(-noise, z, torch.tensor([999]), "v_prediction")
    torch.testing.assert_close(x0, noise)  # v = -x0 where alpha is 0
    torch.testing.assert_close(eps, z)


@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
def test_the_clean_time_is_clean(path: NoisePath):
    t = torch.tensor([path.clean_time])
    assert path.alpha(t) == 1
    assert path.sigma(t) == 0
    assert path.log_snr(t) == math.inf
    assert path.alpha(t.long()) == 1
    x0 = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(path.diffuse(x0, torch.ones_like(x0), t), x0)


@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
def test_signal_falls_and_noise_grows(path: NoisePath):
    t = torch.arange(1, int(path.t_max), 3)
    assert (path.alpha(t).diff() < 0).all()
    assert (path.sigma(t).diff() > 0).all()
    assert (path.log_snr(t).diff() < 0).all()
    expected = 2 * torch.log(path.alpha(t) / path.sigma(t))
    torch.testing.assert_close(path.log_snr(t), expected, atol=1e-5, rtol=1e-5)


def test_times_between_whole_ones_interpolate_log_alpha():
    ends, middle = VP.alpha(torch.tensor([100, 101])), VP.alpha(torch.tensor([100.5]))
    torch.testing.assert_close(middle, ends.prod().sqrt().reshape(1), atol=1e-7, rtol=0)
    assert torch.equal(VP.alpha(torch.tensor([100.0, 999.0])), VP.alpha(torch.tensor([100, 999])))


def test_double_times_give_double_precision():
    t = torch.tensor([0.0, 10.0, 999.0], dtype=torch.float64)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    assert alpha.dtype == torch.float64
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-14, rtol=0)


def test_expand_takes_shape_and_dtype_of_the_latents():
    like = torch.zeros(2, 4, 3, 8, 8, dtype=torch.bfloat16)
    assert expand(torch.tensor([1.0, 2.0]), like).shape == (2, 1, 1, 1, 1)
    assert expand(torch.tensor([1.0, 2.0]), like).dtype == torch.bfloat16
    assert VP.diffuse(like, like, torch.tensor([3, 4])).dtype == torch.bfloat16


def predict(path: NoisePath, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, kind: str) -> torch.Tensor:
    """What a perfect network of this kind says, by each kind's definition."""
    alpha, sigma = expand(path.alpha(t), x0), expand(path.sigma(t), x0)
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha * eps - sigma * x0,
        "flow": eps - x0,
    }[kind]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([VP, FLOW]),
    st.sampled_from(["epsilon", "sample", "v_prediction", "flow"]),
    st.lists(st.floats(1, 990), min_size=2, max_size=2),
    st.integers(0, 2**31),
)
def test_reading_undoes_predicting(path: NoisePath, kind: str, times: list[float], seed: int):
    rng = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 2, 2, 3, 3, 3, generator=rng, dtype=torch.float64)
    t = torch.tensor(times, dtype=torch.float64)
    z = path.diffuse(x0, eps, t)
    found = path.read(predict(path, x0, eps, t, kind), z, t, kind)
    torch.testing.assert_close(found.x0, x0, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found.eps, eps, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(path.diffuse(*found, t), z)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["epsilon", "sample", "v_prediction", "flow"]), st.integers(0, 999), st.integers(0, 2**31)
)
def test_any_prediction_is_read_into_halves_that_agree(kind: str, t: int, seed: int):
    """Denoised's promise z = alpha x0 + sigma eps, for networks that are wrong as well."""
    z, said = torch.randn(2, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    time = torch.tensor([t])
    found = VP.read(said, z, time, kind)
    assert isinstance(found, Denoised)
    torch.testing.assert_close(VP.diffuse(*found, time), z, atol=2e-5, rtol=1e-4)


def test_flow_schedulers_give_a_flow():
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    path = path_from_config({**theirs.config, "_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert isinstance(path, RectifiedFlow)
    assert path.shift == 5.0
    assert path.t_max == 1000
    torch.testing.assert_close(path.alpha(torch.tensor([250.0])), torch.tensor([0.75]))
    wan = path_from_config({"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0})
    assert isinstance(wan, RectifiedFlow)
    assert wan.shift == 3.0
    assert wan.shifted(torch.tensor(0.5)) == 0.75


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            {"beta_schedule": "scaled_linaer", "beta_start": 0.1, "beta_end": 0.2},
            "did you mean 'scaled_linear'",
        ),
        ({"beta_schedule": "linear", "beta_start": 0.1}, "'beta_end' is missing"),
        ({}, "'beta_schedule' is missing"),
        ({**SD, "rescale_betas_zero_snr": True}, "v_prediction"),
        ({"trained_betas": [0.1, -0.2]}, "betas"),
        ({**SD, "_class_name": "CogVideoXDPMScheduler"}, "'snr_shift_scale' is missing"),
        ({**SD, "snr_shift_scale": 0.0}, "snr_shift_scale is 0.0; expected a number above 0"),
    ],
)
def test_a_bad_configuration_is_named(config: dict, names: str):
    with pytest.raises(UserError, match=names):
        path_from_config(config)


def test_unknown_prediction_type_is_named():
    z = torch.zeros(1, 2)
    with pytest.raises(UserError, match="did you mean 'epsilon'"):
        VP.read(z, z, torch.tensor([3]), "epsilonn")
