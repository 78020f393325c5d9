"""The steps against the exact flow of one Gaussian number: their order of convergence, and their algebra."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mcm.diffusion import (
    Denoised,
    NoisePath,
    RectifiedFlow,
    VariancePreserving,
    ddim_step,
    dpmpp_2m_step,
    euler_step,
    guide,
    midpoint_step,
)

VP = VariancePreserving(torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2)
FLOW = RectifiedFlow()
MEAN, DEVIATION = 0.7, 0.5


def exact_denoiser(path: NoisePath, z: Tensor, t: Tensor) -> Denoised:
    alpha, sigma = path.alpha(t), path.sigma(t)
    gain = alpha * DEVIATION**2 / ((alpha * DEVIATION) ** 2 + sigma**2)
    x0 = MEAN + gain * (z - alpha * MEAN)
    return Denoised(x0, (z - alpha * x0) / sigma)


def exact_flow(path: NoisePath, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    deviations = [((path.alpha(r) * DEVIATION) ** 2 + path.sigma(r) ** 2).sqrt() for r in (t, s)]
    return path.alpha(s) * MEAN + deviations[1] / deviations[0] * (z - path.alpha(t) * MEAN)


def error(path: NoisePath, rule: str, steps: int) -> float:
    """From t = 800 to t = 100 in `steps` equal steps of log SNR, where every rule is smooth."""
    ends = path.log_snr(torch.tensor([800.0, 100.0], dtype=torch.float64))
    wanted = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    low, high = torch.full_like(wanted, 100.0), torch.full_like(wanted, 800.0)
    for _ in range(60):  # bisection: log SNR falls with t
        middle = (low + high) / 2
        noisy = path.log_snr(middle) < wanted
        low, high = torch.where(noisy, low, middle), torch.where(noisy, middle, high)
    times = (low + high) / 2
    z = start = torch.tensor([1.3], dtype=torch.float64)
    previous = None
    for t, s in pairwise(times[:, None]):
        if rule == "midpoint":
            z = midpoint_step(path, lambda z, r: exact_denoiser(path, z, r), z, t, s)
            continue
        denoised = exact_denoiser(path, z, t)
        if rule == "dpm++":
            z, previous = dpmpp_2m_step(path, denoised, t, s, previous, z), (denoised.x0, t)
        else:
            z = {"ddim": ddim_step, "euler": euler_step}[rule](path, denoised, t, s)
    return abs(float(z - exact_flow(path, start, times[:1], times[-1:])))


@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize(("rule", "order"), [("ddim", 1), ("euler", 1), ("dpm++", 2), ("midpoint", 2)])
def test_order_of_convergence(path: NoisePath, rule: str, order: int):
    coarse, middle, fine = (error(path, rule, steps) for steps in (20, 40, 80))
    # The betas are a table, interpolated: the flow is smooth between its entries and nearly so across them.
    assert math.log2(coarse / middle) == pytest.approx(order, abs=0.25)
    assert math.log2(middle / fine) == pytest.approx(order, abs=0.25)


def draw(seed: int = 0) -> tuple[Denoised, Tensor]:
    x0, eps, other = torch.randn(3, 2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Denoised(x0, eps), other


@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
def test_with_the_true_halves_every_step_lands_on_the_line(path: NoisePath):
    denoised, _ = draw()
    t, s = torch.tensor([700, 300]), torch.tensor([500, 299])
    z, aim = path.diffuse(*denoised, t), path.diffuse(*denoised, s)
    torch.testing.assert_close(ddim_step(path, denoised, t, s), aim)
    for step in (ddim_step, euler_step):
        torch.testing.assert_close(step(path, denoised, t, s, z=z), aim, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(dpmpp_2m_step(path, denoised, t, s, z=z), aim, atol=2e-5, rtol=1e-4)
    # The same estimate twice has no curvature: the second-order term vanishes.
    same = dpmpp_2m_step(path, denoised, t, s, (denoised.x0, torch.tensor([800, 800])))
    torch.testing.assert_close(same, aim, atol=2e-5, rtol=1e-4)


def test_eulers_step_on_a_flow_is_the_velocity_times_the_time():
    denoised, z = draw()
    t, s = torch.tensor([700.0, 300.0]), torch.tensor([500.0, 0.0])
    expected = z + ((s - t) / 1000).reshape(2, 1, 1, 1, 1) * (denoised.eps - denoised.x0)
    torch.testing.assert_close(euler_step(FLOW, denoised, t, s, z=z), expected)


def test_a_changed_estimate_reads_the_noise_again_from_z():
    denoised, z = draw()
    t, s = torch.tensor([700, 300]), torch.tensor([500, 100])
    clipped = Denoised(denoised.x0.clamp(-1, 1), torch.full_like(z, math.nan))
    eps = VP.read(clipped.x0, z, t, "sample").eps
    torch.testing.assert_close(ddim_step(VP, clipped, t, s, z=z), VP.diffuse(clipped.x0, eps, s))


def test_second_order_extrapolates_the_estimate():
    """The midpoint rule by hand: x0 + (x0 - last) h / (2 h_last), then the first-order step."""
    denoised, last = draw()
    r, t, s = (torch.tensor([k, k]) for k in (800, 700, 500))
    h, before = ((VP.log_snr(b) - VP.log_snr(a)) / 2 for a, b in ((t, s), (r, t)))
    ratio = (h / before).reshape(2, 1, 1, 1, 1)
    bent = Denoised(denoised.x0 + ratio / 2 * (denoised.x0 - last), denoised.eps)
    z = VP.diffuse(*denoised, t)
    expected = dpmpp_2m_step(VP, bent, t, s, z=z)
    torch.testing.assert_close(dpmpp_2m_step(VP, denoised, t, s, (last, r), z), expected)
    assert (expected - VP.diffuse(*denoised, s)).abs().max() > 0.01


@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
def test_the_clean_end_is_the_estimate(path: NoisePath):
    denoised, last = draw()
    t, s = torch.tensor([300, 100]), torch.full((2,), path.clean_time)
    z = path.diffuse(*denoised, t)
    for made in (
        ddim_step(path, denoised, t, s),
        euler_step(path, denoised, t, s, z),
        dpmpp_2m_step(path, denoised, t, s, (last, t + 100), z),
    ):
        torch.testing.assert_close(made, denoised.x0, atol=1e-5, rtol=1e-5)


def test_second_order_after_pure_noise_is_finite():
    """With zero terminal SNR and on a flow, the first lambda is minus infinity."""
    denoised, last = draw()
    t, s = torch.tensor([800, 800]), torch.tensor([600, 600])
    made = dpmpp_2m_step(FLOW, denoised, t, s, (last, torch.tensor([1000, 1000])))
    torch.testing.assert_close(made, FLOW.diffuse(*denoised, s), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
def test_halfway_is_the_middle_in_log_snr(path: NoisePath):
    t, s = torch.tensor([900.0, 500.0, 30.0]), torch.tensor([700.0, 499.0, 10.0])
    middle = path.log_snr(path.halfway(t, s).double())
    ends = path.log_snr(t.double()), path.log_snr(s.double())
    torch.testing.assert_close(middle, (ends[0] + ends[1]) / 2, atol=1e-4, rtol=0)
    whole = path.halfway(torch.tensor([900, 500]), torch.tensor([700, 499]))
    assert whole.dtype == torch.long
    assert 700 < whole[0] < 900
    assert whole[1] in (499, 500)


def test_a_midpoint_step_at_whole_times_stays_of_second_order():
    """Rounded to whole times the middle is not quite one: the weight of its word follows where it is."""
    t, s, start = torch.tensor([440]), torch.tensor([425]), torch.tensor([1.3], dtype=torch.float64)
    aim = exact_flow(VP, start, t.double(), s.double())
    made = midpoint_step(VP, lambda z, r: exact_denoiser(VP, z, r.double()), start, t, s)
    first = ddim_step(VP, exact_denoiser(VP, start, t.double()), t.double(), s.double())
    assert abs(float(made - aim)) < abs(float(first - aim)) / 50


@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
def test_a_midpoint_step_to_or_from_an_infinite_log_snr_is_of_first_order(path: NoisePath):
    denoised, z = draw()
    t, s = torch.tensor([300, 100]), torch.full((2,), int(path.clean_time))
    torch.testing.assert_close(midpoint_step(path, lambda z, r: denoised, z, t, s), denoised.x0, atol=1e-5, rtol=1e-5)
    if path is FLOW:
        t, s = torch.tensor([1000, 1000]), torch.tensor([600, 600])
        made = midpoint_step(path, lambda z, r: denoised, z, t, s)
        torch.testing.assert_close(made, ddim_step(path, denoised, t, s, z))


def test_steps_keep_the_gradient_and_the_dtype():
    denoised, z = draw()
    x0 = denoised.x0.clone().requires_grad_()
    t, s = torch.tensor([300, 100]), torch.tensor([100, 0])
    dpmpp_2m_step(VP, Denoised(x0, denoised.eps), t, s, z=z).sum().backward()
    assert x0.grad is not None
    assert (x0.grad > 0).all()
    half = Denoised(denoised.x0.bfloat16(), denoised.eps.bfloat16())
    assert ddim_step(VP, half, t, s).dtype == torch.bfloat16


def test_guidance_scale_one_is_the_conditional_and_zero_the_unconditional():
    cond, _ = draw(1)
    uncond, _ = draw(2)
    for scale, expected in ((1.0, cond), (0.0, uncond)):
        torch.testing.assert_close(guide(cond, uncond, scale).x0, expected.x0)
        torch.testing.assert_close(guide(cond, uncond, scale).eps, expected.eps)


def test_guidance_takes_a_scale_a_clip_and_w_counts_from_one():
    cond, _ = draw(1)
    uncond, _ = draw(2)
    w = torch.tensor([5.0, 15.0])
    found = guide(cond, uncond, w + 1)
    for row in range(2):
        expected = cond.x0[row] + w[row] * (cond.x0[row] - uncond.x0[row])
        torch.testing.assert_close(found.x0[row], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            found.eps[row], guide(cond, uncond, float(w[row]) + 1).eps[row], atol=1e-6, rtol=1e-6
        )


def test_guided_halves_still_agree():
    t = torch.tensor([300, 700])
    _, z = draw()
    cond, uncond = (VP.read(draw(k)[1], z, t, "epsilon") for k in (1, 2))
    torch.testing.assert_close(VP.diffuse(*guide(cond, uncond, 7.5), t), z, atol=1e-4, rtol=1e-4)
