r"""One step of the probability-flow ODE, from time t down to time s, by four rules; and guidance.

The same functions move the teacher in training and the samplers in generation. Times are (B,) tensors,
latents (B, ...). `z` may be left out: it is alpha_t x0 + sigma_t eps by the meaning of `Denoised`. Give it
where the estimate x0 was changed (clipped, say) and the noise should be read again from z.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mcm.diffusion.paths import Denoised, NoisePath, expand


def ddim_step(path: NoisePath, denoised: Denoised, t: Tensor, s: Tensor, z: Tensor | None = None) -> Tensor:
    """z_s = alpha_s x0 + sigma_s eps (DDIM, arXiv 2010.02502, eq. 12 with eta = 0). First order. -> (B, ...)

    With z (B, ...), the noise is (z - alpha_t x0) / sigma_t rather than `denoised.eps`.
    """
    x0, eps = denoised
    if z is not None:
        eps = (z - expand(path.alpha(t), z) * x0) / expand(path.sigma(t), z)
    return path.diffuse(x0, eps, s)


def euler_step(path: NoisePath, denoised: Denoised, t: Tensor, s: Tensor, z: Tensor | None = None) -> Tensor:
    """One Euler step along the velocity eps - x0. First order. -> (B, ...)

    With u = sigma / (alpha + sigma) and y = z / (alpha + sigma), every path becomes the rectified flow y = (1
    - u) x0 + u eps, and the step is y_s = y_t + (u_s - u_t) (eps - x0). On a variance-preserving path it is
    the DDIM step in other coordinates.
    """
    x0, eps = denoised
    if z is None:
        z = path.diffuse(x0, eps, t)
    total_t, total_s = (expand(path.alpha(r) + path.sigma(r), z) for r in (t, s))
    u_t, u_s = expand(path.sigma(t), z) / total_t, expand(path.sigma(s), z) / total_s
    return total_s * (z / total_t + (u_s - u_t) * (eps - x0))


def dpmpp_2m_step(
    path: NoisePath,
    denoised: Denoised,
    t: Tensor,
    s: Tensor,
    previous: tuple[Tensor, Tensor] | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """One step of DPM-Solver++(2M), midpoint form (arXiv 2211.01095, algorithm 2). Second order. -> (B, ...)

    previous: the clean estimate x0 (B, ...) and the time (B,) of the step before; without it, and where s is
    the clean time, the step is of first order (as diffusers does: at the clean end lambda is infinite).
    """
    if z is None:
        z = path.diffuse(*denoised, t)
    half_t, half_s = path.log_snr(t) / 2, path.log_snr(s) / 2
    h = half_s - half_t
    x0 = denoised.x0
    if previous is not None:
        last_x0, last_t = previous
        # 1 / r = h / h_last; 0 where h is infinite (the clean end) or h_last is (alpha was 0 there).
        ratio = torch.where(torch.isfinite(h), h / (half_t - path.log_snr(last_t) / 2), torch.zeros_like(h))
        x0 = x0 + 0.5 * expand(ratio, z) * (x0 - last_x0)
    keep = expand(path.sigma(s) / path.sigma(t), z)
    gain = expand(-path.alpha(s) * torch.expm1(-h), z)
    return keep * z + gain * x0


def midpoint_step(
    path: NoisePath, denoise: Callable[[Tensor, Tensor], Denoised], z: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """One step of DPM-Solver++(2S) through the time halfway in log SNR (arXiv 2211.01095, algorithm 1). Second order,
    by itself: it asks `denoise` (z (B, ...), t (B,)) twice and needs no step before. -> (B, ...)

    Of first order where log SNR is infinite at one of the ends.
    """
    first, half = denoise(z, t), path.halfway(t, s)
    second = denoise(ddim_step(path, first, t, half), half)
    start, middle, end = (path.log_snr(r) for r in (t, half, s))
    curved = torch.isfinite(end - start) & (middle > start)
    weight = torch.where(curved, (end - start) / (2 * (middle - start)), torch.zeros_like(start))  # 1 / (2 r)
    x0 = first.x0 + expand(weight, z) * (second.x0 - first.x0)
    return ddim_step(path, Denoised(x0, first.eps), t, s, z)


def guide(cond: Denoised, uncond: Denoised, scale: float | Tensor) -> Denoised:
    """Classifier-free guidance (arXiv 2207.12598) of both halves: uncond + scale (cond - uncond). -> Denoised
    (B, ...)

    scale: diffusers' guidance_scale, a number or (B,); 1 is no guidance. The papers' w (method, item 2)
    counts from there: x0_c + w (x0_c - x0_u), so w = scale - 1.
    """

    def mix(c: Tensor, u: Tensor) -> Tensor:
        return u + (expand(scale, c) if isinstance(scale, Tensor) else scale) * (c - u)

    return Denoised(mix(cond.x0, uncond.x0), mix(cond.eps, uncond.eps))
