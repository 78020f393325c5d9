"""From a student's card to the scheduler of diffusers that samples as the student's own sampler does."""

from __future__ import annotations

from typing import Any

import torch

from mcm.card import StudentCard
from mcm.diffusion.consistency import ConsistencyFunction
from mcm.diffusion.paths import NoisePath, RectifiedFlow, VariancePreserving, path_from_config
from mcm.errors import UserError
from mcm.samplers import sampler
from mcm.samplers.base import Sampler

_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
SIGMA_DATA = 0.5  # of diffusers' LCMScheduler, which knows no other
FLOW_LCM = "FlowMatchLCMScheduler"
_UNHEARD = 1e-5  # the largest share of z in f that may be left out


def diffusers_scheduler(card: StudentCard) -> Any:
    """A scheduler with the card's betas or shift, prediction type, times and timestep scaling.

    diffusers' `FLOW_LCM` has no setting for the times: `own_levels` are to be given to its `set_timesteps`.
    UserError where there is none.
    """
    import diffusers

    path, own = path_from_config(card.scheduler), sampler(card.sampler["name"], **card.sampler_settings())
    if isinstance(path, RectifiedFlow):
        return _of_a_flow(card, path, own)
    if getattr(own, "sigma_data", SIGMA_DATA) != SIGMA_DATA:
        raise _lacking(card, own, f"sigma_data other than {SIGMA_DATA}")
    if own.name == "euler":
        # diffusers' EulerDiscreteScheduler starts from noise of another scale; on such a path Euler's step is DDIM's.
        own = sampler("ddim", spacing="trailing", set_alpha_to_one=True)
    betas = {key: card.scheduler[key] for key in _BETAS if card.scheduler.get(key) is not None}
    if isinstance(path, VariancePreserving) and card.scheduler.get("snr_shift_scale") is not None:
        # CogVideoX's own schedulers alone know it
        betas = {"num_train_timesteps": path.num_timesteps, "trained_betas": path.betas.tolist()}
    config = {**betas, "prediction_type": card.scheduler.get("prediction_type", "epsilon"), **own.to_config()}
    return getattr(diffusers, config.pop("_class_name"))(**config)


def own_levels(card: StudentCard) -> str:
    """Python for the noise levels, before the shift, of so many `steps` of a student on a rectified flow: what
    `set_timesteps` of diffusers' `FLOW_LCM` takes as sigmas."""
    points = int(card.sampler_settings().get("original_steps", 50))
    return f"[1 - ({points} * k // steps) / {points} for k in range(steps)]"


def _of_a_flow(card: StudentCard, path: RectifiedFlow, own: Sampler) -> Any:
    import diffusers

    shape = {"num_train_timesteps": path.num_timesteps, "shift": path.shift}
    if own.name == "euler":
        return diffusers.FlowMatchEulerDiscreteScheduler(**shape)
    if own.name != "consistency":
        raise _lacking(card, own, "a rectified flow")
    # It jumps to x0 itself, not to f: the same where c_skip is nothing, which at k t in the hundreds it is.
    f = ConsistencyFunction(getattr(own, "sigma_data", SIGMA_DATA), float(getattr(own, "timestep_scaling", 0) or 1))
    if float(f.c_skip(_least(card, path, own))) > _UNHEARD:
        raise _lacking(card, own, "a rectified flow and a timestep scaling this small")
    return getattr(diffusers, FLOW_LCM)(**shape)


def _least(card: StudentCard, path: NoisePath, own: Sampler) -> torch.Tensor:
    """The smallest time, (1,), at which the card's numbers of steps ask the network."""
    return torch.stack([own.times(path, steps)[-2] for steps in card.steps_supported]).min()[None]


def _lacking(card: StudentCard, own: Sampler, what: str) -> UserError:
    return UserError(
        f"the student {card.name}: diffusers has no scheduler for its sampler {own.name!r} with {what}; sample it "
        "with `mcm generate` (adapters in its own folder are in peft's layout already)"
    )
