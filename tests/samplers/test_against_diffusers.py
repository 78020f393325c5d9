"""Whole runs beside diffusers' schedulers: the same network, noise and steps give the same latents."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from mcm.diffusion import Denoised, NoisePath, path_from_config
from mcm.samplers import Sampler, sample, sampler, samplers
from mcm.samplers.base import Rng

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KINDS = ["epsilon", "sample", "v_prediction"]
SHAPE = (2, 3, 2, 4, 4)


def network(z: Tensor, t: Tensor | float) -> Tensor:
    """Any bent function of z and t will do for a network."""
    t = torch.as_tensor(t, dtype=z.dtype)
    t = t.reshape(-1, 1, 1, 1, 1) if t.ndim else t
    return 0.8 * torch.tanh(z + 0.3) + 0.2 * torch.sin(z * t / 300) + t / 2000


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def theirs(scheduler: Any, steps: int, start: Tensor, rng: torch.Generator | None = None, **more: Any) -> Tensor:
    scheduler.set_timesteps(steps)
    z = start * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else start
    for t in scheduler.timesteps:
        extra = more if rng is None else {"generator": rng, **more}
        scaled = scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
        z = scheduler.step(network(scaled, t), t, z, **extra).prev_sample
    return z


def ours(
    ours: Sampler, path: NoisePath, kind: str, steps: int, start: Tensor, rng: Rng | None = None
) -> Tensor:
    def denoise(z: Tensor, t: Tensor) -> Denoised:
        return path.read(network(z, t), z, t, kind)

    return sample(denoise, path, ours, start, steps, rng or torch.Generator())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4, 25, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim(kind: str, steps: int, spacing: str, to_one: bool):
    scheduler = DDIMScheduler(
        **SD,
        prediction_type=kind,
        timestep_spacing=spacing,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=to_one,
    )
    own, path = sampler("ddim").from_config(scheduler.config), path_from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    assert own.times(path, steps)[:-1].tolist() == scheduler.timesteps.tolist()
    found, expected = ours(own, path, kind, steps, noise()), theirs(scheduler, steps, noise())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_ddims_linspace_times_are_diffusers():
    scheduler = DDIMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(30)
    found = sampler("ddim", spacing="linspace").times(path_from_config(scheduler.config), 30)
    assert found[:-1].tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 4, 14, 15, 25])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_dpmpp(kind: str, steps: int, spacing: str):
    scheduler = DPMSolverMultistepScheduler(
        **SD, prediction_type=kind, timestep_spacing=spacing, steps_offset=1
    )
    own, path = sampler("dpm++").from_config(scheduler.config), path_from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    assert own.times(path, steps)[:-1].tolist() == scheduler.timesteps.tolist()
    found, expected = ours(own, path, kind, steps, noise()), theirs(scheduler, steps, noise())
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("steps", [4, 20])
def test_dpmpp_on_a_flow(steps: int):
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    own, path = sampler("dpm++").from_config(scheduler.config), path_from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    times = own.times(path, steps)
    torch.testing.assert_close(times / 1000, scheduler.sigmas, atol=1e-6, rtol=1e-6)
    # diffusers tells the network the times cut to whole numbers; so a network that does not look at them.
    z = expected = noise()
    for t in scheduler.timesteps:
        expected = scheduler.step(torch.tanh(expected), t, expected).prev_sample
    z = sample(lambda z, t: path.read(torch.tanh(z), z, t, "flow"), path, own, z, steps, torch.Generator())
    torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("scaling", [4.0, 10.0])
def test_consistency(kind: str, steps: int, scaling: float):
    scheduler = LCMScheduler(**SD, prediction_type=kind, timestep_scaling=scaling)
    own, path = sampler("consistency").from_config(scheduler.config), path_from_config(scheduler.config)
    rngs = [torch.Generator().manual_seed(5) for _ in range(2)]
    found = ours(own, path, kind, steps, noise(), rngs[0])
    expected = theirs(scheduler, steps, noise(), rngs[1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Not one number more was drawn: the last step adds no noise.
    assert torch.equal(torch.randn(3, generator=rngs[0]), torch.randn(3, generator=rngs[1]))


def test_consistency_times_at_every_number_of_steps():
    for original in (50, 40, 30):
        scheduler = LCMScheduler(original_inference_steps=original)
        own, path = sampler("consistency").from_config(scheduler.config), path_from_config(scheduler.config)
        for steps in range(1, original + 1):
            scheduler.set_timesteps(steps)
            assert own.times(path, steps)[:-1].tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.9, 1.0])
def test_tcd(kind: str, steps: int, eta: float):
    scheduler = TCDScheduler(**SD, prediction_type=kind, clip_sample=False)
    own, path = sampler("tcd", eta=eta), path_from_config(scheduler.config)
    rngs = [torch.Generator().manual_seed(5) for _ in range(2)]
    found = ours(own, path, kind, steps, noise(), rngs[0])
    expected = theirs(scheduler, steps, noise(), rngs[1], eta=eta)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.randn(3, generator=rngs[0]), torch.randn(3, generator=rngs[1]))


def test_tcd_with_all_noise_fresh_is_consistency():
    """But for the boundary condition's share of z and the last time, 0, where some noise is left."""
    path = path_from_config(SD)
    wanted = sampler("tcd", eta=1.0), sampler("consistency", timestep_scaling=10.0), sampler("tcd", eta=0.0)
    found, expected, none = (
        ours(one, path, "sample", 4, noise(), torch.Generator().manual_seed(5)) for one in wanted
    )
    left = 5 * float(path.sigma(torch.tensor([0])))
    assert (found - expected).abs().max() < left < (none - expected).abs().max()


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_a_flow(steps: int, shift: float):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    config = {**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}
    own, path = sampler("euler").from_config(config), path_from_config(config)
    found, expected = ours(own, path, "flow", steps, noise()), theirs(scheduler, steps, noise())
    torch.testing.assert_close(own.times(path, steps) / 1000, scheduler.sigmas, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_euler_on_a_variance_preserving_path(steps: int):
    """diffusers' Euler lives in z / alpha and scales its start: begin where it begins."""
    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    path = path_from_config(scheduler.config)
    start = noise() * path.sigma(torch.tensor([999]))
    found, expected = ours(sampler("euler"), path, "epsilon", steps, start), theirs(scheduler, steps, noise())
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "consistency", "tcd", "euler"])
def test_settings_survive_diffusers_configurations(name: str):
    own = sampler(name)
    scheduler = getattr(diffusers, own.diffusers_class).from_config({**SD, **own.to_config()})
    assert samplers()[name].from_config(scheduler.config) == own
