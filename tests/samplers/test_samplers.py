from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mcm.diffusion import Denoised, NoisePath, RectifiedFlow, VariancePreserving
from mcm.errors import UserError
from mcm.samplers import noise_like, sample, sampler, samplers
from mcm.samplers.loop import Step

VP = VariancePreserving(torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2)
FLOW = RectifiedFlow(shift=3.0)


def denoiser(path: NoisePath, clean: Tensor):
    """A denoiser that knows the answer."""

    def denoise(z: Tensor, t: Tensor) -> Denoised:
        return path.read(clean.expand_as(z), z, t, "sample")

    return denoise


def test_all_are_found_by_name_and_frozen():
    assert set(samplers()) == {"ddim", "dpm++", "consistency", "tcd", "euler"}
    for name, kind in samplers().items():
        one = sampler(name)
        assert isinstance(one, kind)
        assert one == sampler(name)
        assert hash(one) == hash(sampler(name))
    assert sampler("consistency", timestep_scaling=10.0) != sampler("consistency")
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler("ddim").spacing = "trailing"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dpmpp", {}, r"did you mean 'dpm\+\+'"),
        ("consistency", {"timestep_scalling": 4}, "did you mean 'timestep_scaling'"),
        ("ddim", {"spacing": "trailling"}, "did you mean 'trailing'"),
        ("dpm++", {"spacing": "even"}, "expected one of leading, linspace, trailing"),
        ("euler", {"shift": 3}, "has no setting 'shift'"),
        ("tcd", {"eta": 1.1}, r"eta from 0 .* to 1 .*, got 1\.1"),
        ("tcd", {"eta": -0.1}, r"got -0\.1"),
    ],
)
def test_wrong_words_are_named(name: str, settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        sampler(name, **settings)


@pytest.mark.parametrize(
    ("name", "path", "steps", "message"),
    [
        ("ddim", VP, 0, "1 to 1000 steps, got 0"),
        ("dpm++", VP, 1000, "1 to 999 steps"),
        ("consistency", VP, 51, "1 to 50 steps, got 51"),
        ("euler", FLOW, 1001, "1 to 1000 steps"),
        ("ddim", FLOW, 4, "use 'euler'"),
        ("tcd", VP, 51, "sampler 'tcd': expected 1 to 50 steps, got 51"),
        ("tcd", FLOW, 4, "use 'consistency'"),
    ],
)
def test_impossible_runs_are_refused(name: str, path: NoisePath, steps: int, message: str):
    with pytest.raises(UserError, match=message):
        sampler(name).times(path, steps)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ddim", {"clip_sample": True}),
        ("dpm++", {"use_karras_sigmas": True}),
        ("dpm++", {"solver_order": 3}),
        ("euler", {"use_dynamic_shifting": True}),
    ],
)
def test_a_scheduler_that_we_cannot_follow_is_refused(name: str, config: dict):
    with pytest.raises(UserError, match=next(iter(config))):
        samplers()[name].from_config(config)


def test_a_configuration_without_our_keys_keeps_our_defaults():
    assert samplers()["consistency"].from_config({"timestep_spacing": "leading"}) == sampler("consistency")


def test_consistency_times_of_the_paper():
    times = sampler("consistency").times
    assert times(VP, 1).tolist() == [999, -1]
    assert times(VP, 2).tolist() == [999, 499, -1]
    assert times(VP, 4).tolist() == [999, 759, 499, 259, -1]
    assert times(VP, 8).tolist() == [999, 879, 759, 639, 499, 379, 259, 139, -1]


@pytest.mark.parametrize(
    ("name", "path"),
    [("ddim", VP)] + [(name, path) for name in ("dpm++", "consistency", "euler") for path in (VP, FLOW)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 25])
def test_times_fall_and_a_denoiser_that_knows_is_believed(name: str, path: NoisePath, steps: int):
    settings = {"spacing": "trailing", "set_alpha_to_one": True} if name == "ddim" else {}
    one = sampler(name, **settings)
    times = one.times(path, steps)
    assert times.shape == (steps + 1,)
    assert (times.diff() < 0).all()
    assert times[0] <= path.t_max
    assert times[-1] == path.clean_time
    clean = torch.linspace(-2, 2, 6).reshape(1, 1, 6, 1, 1)
    noise = torch.randn(3, 1, 6, 1, 1, generator=torch.Generator().manual_seed(0))
    made = sample(denoiser(path, clean), path, one, noise, steps, torch.Generator())
    torch.testing.assert_close(made, clean.expand_as(made), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
def test_consistency_adds_fresh_noise_of_the_next_time(path: NoisePath):
    one = sampler("consistency")
    t, s = (time.expand(2) for time in one.times(path, 4)[:2])
    z, eps = torch.randn(2, 2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    clean = torch.zeros_like(z)
    stepped = one.step(path, Denoised(clean, eps), z, t, s, {}, torch.Generator().manual_seed(9))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(stepped, path.sigma(s)[0] * noise, atol=1e-4, rtol=1e-3)


def test_a_clip_does_not_depend_on_its_batch():
    """One generator a clip: made alone or together, the same film."""
    one = sampler("consistency")

    def run(seeds: list[int]) -> Tensor:
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = noise_like(torch.empty(len(seeds), 2, 3, 4, 4), rngs)
        return sample(lambda z, t: VP.read(torch.tanh(z), z, t, "sample"), VP, one, noise, 4, rngs)

    together = run([1, 2, 3])
    torch.testing.assert_close(run([2]), together[1:2])
    assert not torch.allclose(together[0], together[1])


def test_noise_needs_a_generator_a_clip():
    with pytest.raises(ValueError, match="one generator a clip, 3 of them, got 2"):
        noise_like(torch.zeros(3, 1), [torch.Generator(), torch.Generator()])


def test_deterministic_samplers_draw_nothing():
    for name in ("ddim", "dpm++", "euler"):
        rng, fresh = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
        sample(denoiser(VP, torch.zeros(1)), VP, sampler(name), torch.ones(2, 1, 2, 2, 2), 3, rng)
        assert torch.equal(rng.get_state(), fresh.get_state())


def test_runs_share_no_memory():
    """The second-order step must not look back into another run."""
    one, noise = sampler("dpm++"), torch.ones(1, 1, 2, 2, 2)

    def run() -> Tensor:
        return sample(lambda z, t: VP.read(z.cos(), z, t, "sample"), VP, one, noise, 5, torch.Generator())

    assert torch.equal(run(), run())


def test_the_denoiser_sees_one_time_a_clip_and_every_step_is_told():
    seen: list[list[int]] = []
    told: list[Step] = []

    def denoise(z: Tensor, t: Tensor) -> Denoised:
        seen.append(t.tolist())
        return Denoised(z + len(seen), z)

    made = sample(
        denoise, VP, sampler("consistency"), torch.ones(2, 1, 1, 1, 1), 2, torch.Generator(),
        watch=told.append,
    )  # fmt: skip
    assert seen == [[999, 999], [499, 499]]
    assert [(step.done, step.steps) for step in told] == [(1, 2), (2, 2)]
    assert torch.equal(told[0].x0, torch.full_like(made, 2.0))  # ones and the first call's 1


def test_gradients_flow_through_a_run():
    gain = torch.ones(1, requires_grad=True)
    made = sample(
        lambda z, t: VP.read(gain * z, z, t, "sample"),
        VP, sampler("consistency"), torch.ones(1, 1, 1, 1, 1), 2, torch.Generator(),
    )  # fmt: skip
    made.sum().backward()
    assert gain.grad is not None
    assert gain.grad.abs() > 0
