r"""Noise paths: how a clean latent becomes noise, $z_t = \alpha_t z_0 + \sigma_t \epsilon$, and how to read
it back.

Times are the network's own units: 0..999 for a variance-preserving path of 1000 betas, 0..1000 for a
rectified flow.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from mcm.errors import UserError, one_of

KINDS = ("epsilon", "sample", "v_prediction", "flow")
BISECTIONS = 40  # halvings of a span of 1000 times: to 1e-9 of a time
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


class Denoised(NamedTuple):
    """What a denoiser says about z_t. Both halves agree: z_t = alpha_t x0 + sigma_t eps.

    x0: the estimate of the clean latents, (B, C, T, H, W); eps: the estimate of the noise, same shape.
    """

    x0: Tensor
    eps: Tensor


def expand(v: Tensor, like: Tensor) -> Tensor:
    """`v` (B,), one number a clip, in the shape (B, 1, ..., 1), dtype and device of `like` (B, ...)."""
    return v.to(like).reshape(-1, *(1,) * (like.ndim - 1))


class NoisePath(ABC):
    """alpha(t) and sigma(t), and all that follows from them.

    Every time argument `t` is a (B,) tensor, long or float (float32 at least: 999 does not fit bfloat16).
    alpha and sigma come back as float64 where t is float64, else as float32.
    """

    num_timesteps: int

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The noisiest time."""

    @property
    @abstractmethod
    def clean_time(self) -> float:
        """The time at which z is the clean latents exactly: alpha 1, sigma 0."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The share of the clean latents at t (B,) -> (B,), in [0, 1]."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The share of the noise at t (B,) -> (B,), in [0, 1]."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at t (B,) -> (B,); +inf at the clean time, -inf where alpha is 0.

        DPM-Solver's lambda (arXiv 2211.01095) is half of it.
        """
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def halfway(self, t: Tensor, s: Tensor) -> Tensor:
        """The time where log SNR is midway between those of t and s (B,), t the noisier -> (B,), the dtype of t.

        A whole time where times are whole numbers; t itself where one of the two ends is infinite.
        """
        ends = self.log_snr(t.double()), self.log_snr(s.double())
        wanted = (ends[0] + ends[1]) / 2
        low, high = s.double(), t.double()
        for _ in range(BISECTIONS):  # log SNR falls with the time
            middle = (low + high) / 2
            noisy = self.log_snr(middle) < wanted
            low, high = torch.where(noisy, low, middle), torch.where(noisy, middle, high)
        found = (low + high) / 2 if t.is_floating_point() else ((low + high) / 2).round()
        return torch.where(torch.isfinite(wanted), found.to(t.dtype), t)

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha_t x0 + sigma_t eps; x0 and eps (B, ...), t (B,) -> (B, ...)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def read(self, prediction: Tensor, z: Tensor, t: Tensor, kind: str) -> Denoised:
        """A network's output (B, ...) at z (B, ...) and t (B,), read as (x0, eps).

        kind, in diffusers' words: "epsilon" (the noise), "sample" (the clean latents), "v_prediction"
        (alpha eps - sigma x0, arXiv 2202.00512) or "flow" (eps - x0, arXiv 2209.03003).
        "epsilon" says nothing about x0 where alpha is 0, nor "sample" about eps where sigma is 0.
        Raises UserError on another kind.
        """
        alpha, sigma = expand(self.alpha(t), z), expand(self.sigma(t), z)
        if kind == "epsilon":
            return Denoised((z - sigma * prediction) / alpha, prediction)
        if kind == "sample":
            return Denoised(prediction, (z - alpha * prediction) / sigma)
        if kind == "v_prediction":
            # Solve z = alpha x0 + sigma eps and v = alpha eps - sigma x0; the divisor is 1 on a VP path.
            power = alpha**2 + sigma**2
            return Denoised(
                (alpha * z - sigma * prediction) / power, (sigma * z + alpha * prediction) / power
            )
        if kind == "flow":
            # z = alpha x0 + sigma eps and v = eps - x0; the divisor is 1 on a rectified flow.
            total = alpha + sigma
            return Denoised((z - sigma * prediction) / total, (z + alpha * prediction) / total)
        raise one_of("prediction type", kind, KINDS)


class VariancePreserving(NoisePath):
    """alpha = sqrt(abar), sigma = sqrt(1 - abar), abar the running product of 1 - beta (DDPM, arXiv
    2006.11239).

    Whole times are exact, times between them interpolate log(alpha); any t below 0 is the clean end. With
    betas of zero terminal SNR the last alpha is exactly 0, where "epsilon" cannot be read.
    """

    def __init__(self, betas: Tensor) -> None:
        """betas: (num_timesteps,), each in (0, 1]."""
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise UserError(f"betas: expected a list of numbers in (0, 1], got shape {tuple(betas.shape)}")
        self.betas = betas.detach().double().cpu()
        self.num_timesteps = len(betas)
        # One table, log alpha in double; sigma comes from expm1, which keeps its digits at small t.
        self._log_alpha = 0.5 * (1 - self.betas).log().cumsum(0)
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The path of a diffusers scheduler configuration.

        Reads trained_betas, or beta_schedule (linear, scaled_linear, squaredcos_cap_v2), beta_start, beta_end
        and num_train_timesteps (1000 when absent); snr_shift_scale (CogVideoX's) and then
        rescale_betas_zero_snr are applied to either. Nothing else is assumed: a missing or unknown value
        raises UserError, for teachers differ in their betas and a guess would spoil them.
        """
        count = int(config.get("num_train_timesteps", 1000))
        trained = config.get("trained_betas")
        if trained is not None:
            betas = torch.as_tensor(trained, dtype=torch.float64)
        else:
            schedule = str(_required(config, "beta_schedule"))
            if schedule == "squaredcos_cap_v2":
                betas = _cosine_betas(count)
            elif schedule in BETA_SCHEDULES:
                power = 1.0 if schedule == "linear" else 0.5
                start, end = (float(_required(config, key)) ** power for key in ("beta_start", "beta_end"))
                betas = torch.linspace(start, end, count, dtype=torch.float64) ** (1 / power)
            else:
                raise one_of("beta_schedule in the scheduler configuration", schedule, BETA_SCHEDULES)
        if "snr_shift_scale" in config or str(config.get("_class_name", "")).startswith("CogVideoX"):
            betas = _shifted_snr(betas, float(_required(config, "snr_shift_scale")))
        if config.get("rescale_betas_zero_snr"):
            betas = _zero_terminal_snr(betas)
        return cls(betas)

    @property
    def t_max(self) -> float:
        return float(self.num_timesteps - 1)

    @property
    def clean_time(self) -> float:
        return -1.0

    def alpha(self, t: Tensor) -> Tensor:
        return self._at(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(2 * self._at(t)).abs().sqrt()

    def _at(self, t: Tensor) -> Tensor:
        """log alpha at t (B,) -> (B,)."""
        dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
        table = self._tables.get((t.device, dtype))
        if table is None:
            table = self._log_alpha.to(t.device, dtype)
            self._tables[t.device, dtype] = table
        low = t.floor().long().clamp(0, self.num_timesteps - 1)
        if t.is_floating_point():
            high = (low + 1).clamp(max=self.num_timesteps - 1)
            part = t.to(dtype) - low
            # `where`, not `lerp` alone: with zero terminal SNR the table ends in -inf, and 0 * -inf is nan.
            between = table[low] + part * (table[high] - table[low])
            value = torch.where(part > 0, between, table[low])
        else:
            value = table[low]
        return torch.where(t < 0, torch.zeros_like(value), value)


class RectifiedFlow(NoisePath):
    """alpha = 1 - u, sigma = u, u = t / num_timesteps: the straight line of arXiv 2209.03003.

    `shift` moves the times that grids and samplers pick towards the noise (arXiv 2403.03206, eq. 23); the
    path itself does not depend on it, for t is the network's input after shifting.
    """

    def __init__(self, num_timesteps: int = 1000, shift: float = 1.0) -> None:
        if num_timesteps < 1 or shift <= 0:
            raise UserError(
                f"rectified flow: expected num_timesteps >= 1, shift > 0; got {num_timesteps}, {shift}"
            )
        self.num_timesteps = num_timesteps
        self.shift = shift

    @property
    def t_max(self) -> float:
        return float(self.num_timesteps)

    @property
    def clean_time(self) -> float:
        return 0.0

    def shifted(self, u: Tensor) -> Tensor:
        """Evenly spread noise levels u in [0, 1], any shape, moved by `shift`."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
        return (t.to(dtype) / self.num_timesteps).clamp(0, 1)


def path_from_config(config: Mapping[str, Any]) -> NoisePath:
    """The noise path that a diffusers scheduler configuration describes.

    A flow-matching scheduler (by its `_class_name`, or `prediction_type` "flow_prediction", or
    `use_flow_sigmas`) gives a RectifiedFlow with its shift; every other one a VariancePreserving path. Raises
    UserError where the configuration lacks a value or asks for "epsilon" at zero terminal SNR, where it
    cannot be read.
    """
    flow = "FlowMatch" in str(config.get("_class_name", ""))
    if flow or config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return RectifiedFlow(int(config.get("num_train_timesteps", 1000)), float(shift))
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", "epsilon") == "epsilon":
        raise UserError(
            "scheduler configuration: rescale_betas_zero_snr leaves no signal at the last time, where "
            "prediction_type 'epsilon' says nothing; expected 'v_prediction' or 'sample'"
        )
    return VariancePreserving.from_config(config)


def _required(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise UserError(f"scheduler configuration: {key!r} is missing; give a whole scheduler_config.json")
    return config[key]


def _cosine_betas(count: int, largest: float = 0.999) -> Tensor:
    """Betas of the squared cosine (arXiv 2102.09672, eq. 17), each at most `largest`, (count,) float64."""
    u = torch.arange(count + 1, dtype=torch.float64) / count
    abar = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=largest)


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """The same betas, moved and stretched so that alpha ends at exactly 0 (arXiv 2305.08891, algorithm 1)."""
    alpha = (1 - betas).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return _betas(alpha**2)


def _shifted_snr(betas: Tensor, scale: float) -> Tensor:
    """The same betas with every alpha^2 / sigma^2 divided by `scale` (CogVideoX, after arXiv 2403.03206)."""
    if not scale > 0:
        raise UserError(f"scheduler configuration: snr_shift_scale is {scale}; expected a number above 0")
    abar = (1 - betas).cumprod(0)
    return _betas(abar / (scale + (1 - scale) * abar))


def _betas(abar: Tensor) -> Tensor:
    """The betas whose running product of 1 - beta is abar, (count,) float64."""
    abar = torch.cat([torch.ones(1, dtype=abar.dtype), abar])
    return 1 - abar[1:] / abar[:-1]
