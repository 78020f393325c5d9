"""From a student's card to the scheduler of diffusers that samples as the student's own sampler does."""

from __future__ import annotations

from typing import Any

from mcm.card import StudentCard
from mcm.diffusion.paths import VariancePreserving, path_from_config
from mcm.errors import UserError
from mcm.samplers import sampler

_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
SIGMA_DATA = 0.5  # of diffusers' LCMScheduler, which knows no other


def diffusers_scheduler(card: StudentCard) -> Any:
    """A scheduler with the card's betas, prediction type, times and timestep scaling. UserError where there is none."""
    import diffusers

    path, own = path_from_config(card.scheduler), sampler(card.sampler["name"], **card.sampler_settings())
    if not isinstance(path, VariancePreserving) or getattr(own, "sigma_data", SIGMA_DATA) != SIGMA_DATA:
        what = f"sigma_data other than {SIGMA_DATA}" if isinstance(path, VariancePreserving) else "a rectified flow"
        raise UserError(
            f"the student {card.name}: diffusers has no scheduler for its sampler {own.name!r} with {what}; sample it "
            "with `mcm generate` (adapters in its own folder are in peft's layout already)"
        )
    if own.name == "euler":
        # diffusers' EulerDiscreteScheduler starts from noise of another scale; on such a path Euler's step is DDIM's.
        own = sampler("ddim", spacing="trailing", set_alpha_to_one=True)
    betas = {key: card.scheduler[key] for key in _BETAS if card.scheduler.get(key) is not None}
    if card.scheduler.get("snr_shift_scale") is not None:  # CogVideoX's own schedulers alone know it
        betas = {"num_train_timesteps": path.num_timesteps, "trained_betas": path.betas.tolist()}
    config = {**betas, "prediction_type": card.scheduler.get("prediction_type", "epsilon"), **own.to_config()}
    return getattr(diffusers, config.pop("_class_name"))(**config)
