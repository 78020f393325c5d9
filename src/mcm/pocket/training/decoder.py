"""The autoencoder's decoder goes on alone, so that latents stay what the teachers were trained on.

`fit`, a stage of the zoo: the autoencoder's own errors, without the pull of the latents' prior.

`sharpen`, tried and not in the zoo (docs/log.md): absolute and squared errors make the mean of all pictures that a
latent could be, which is a blur. As in the autoencoders of latent diffusion (Esser et al. 2021, arXiv 2012.09841,
section 3.1), a critic of patches that is trained beside it asks for one of those pictures instead. It sees two
neighbouring frames at once, so that grain which flickers otherwise than film does is told from film, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call

from mcm.adversarial import AdversarialLoss
from mcm.pocket.training.autoencoder import figure_weight, reconstruction
from mcm.pocket.training.corpus import Domains
from mcm.pocket.training.loop import Losses, train

CRITIC_SHARE = 0.5  # of the reconstruction's gradient at the last layer, what the critic's is scaled to


class PatchCritic(nn.Sequential):
    """Pairs of frames (N, 6, 64, 64) to one logit per patch (N, 1, 16, 16)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(6, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.GroupNorm(8, 4 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )  # fmt: skip


def balance(errors: Tensor, criticism: Tensor, last: Tensor) -> Tensor:
    """The factor of the critic's loss: the norm of the errors' gradient at the last layer over its own (equation 7)."""
    (of_errors,) = torch.autograd.grad(errors, last, retain_graph=True)
    (of_criticism,) = torch.autograd.grad(criticism, last, retain_graph=True)
    return (of_errors.norm() / (of_criticism.norm() + 1e-4)).clamp(max=1e4)


def objectives(vae: Any, critic: PatchCritic, x: Tensor, weight: Tensor, rng: torch.Generator) -> Losses:
    """The losses of both players, each of which reaches its own weights alone.

    x: neighbouring frames, pair after pair, (2 N, 3, 64, 64) in [-1, 1]; weight: (2 N, 1, 64, 64), see `figure_weight`.
    """
    loss = AdversarialLoss("hinge")
    y = decoded(vae, x, rng)
    errors = reconstruction(x, y, weight)
    still = {name: p.detach() for name, p in critic.named_parameters()}
    criticism = loss.generator(functional_call(critic, still, (paired(y),)))
    factor = balance(torch.stack(list(errors.values())).sum(), criticism, vae.decoder.conv_out.weight)
    real, made = critic(torch.cat([paired(x), paired(y.detach())])).chunk(2)
    return {**errors, "criticism": CRITIC_SHARE * factor * criticism, "critic": loss.discriminator(real, made)}


def decoded(vae: Any, x: Tensor, rng: torch.Generator) -> Tensor:
    """Pictures (N, 3, 64, 64) through the autoencoder; gradients reach the decoder alone."""
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=rng)
    return vae.decode(posterior.mean + posterior.std * noise).sample


def weights_of_decoder(vae: Any) -> list[nn.Parameter]:
    """What is trained here."""
    return [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]


def paired(frames: Tensor) -> Tensor:
    """(2 N, 3, H, W) -> (N, 6, H, W): both frames of a pair as channels."""
    return frames.unflatten(0, (-1, 2)).flatten(1, 2)


def fit(work: Path, steps: int = 450, batch: int = 16) -> AutoencoderKL:
    """Train (or go on training) the decoder on single frames of all domains, `batch` of them a step."""
    vae = _loaded(work)
    domains = Domains(work)

    def losses(step: int, rng: torch.Generator) -> Losses:
        x, joints = domains.draw(rng, batch).frames(rng)
        return reconstruction(x, decoded(vae, x, rng), figure_weight(joints))

    how: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.0, "parameters": weights_of_decoder(vae)}
    vae.load_state_dict(train("decoder", vae, losses, steps=steps, work=work, **how))
    return vae.eval()


def sharpen(work: Path, steps: int = 2000, batch: int = 8) -> AutoencoderKL:
    """Go on from `fit` with a critic, on pairs of neighbouring frames of all domains, `batch` of them a step."""
    vae, critic = _loaded(work), PatchCritic()
    model = nn.ModuleDict({"vae": vae, "critic": critic})
    domains = Domains(work)

    def losses(step: int, rng: torch.Generator) -> Losses:
        drawn = domains.draw(rng, batch)
        moment = torch.randint(drawn.joints.shape[1] - 1, (batch,), generator=rng)
        clip, pair = torch.arange(batch)[:, None], torch.stack([moment, moment + 1], dim=1)
        x = drawn.clips().transpose(1, 2)[clip, pair].flatten(0, 1)
        return objectives(vae, critic, x, figure_weight(drawn.joints[clip, pair].flatten(0, 1)), rng)

    trained = [*weights_of_decoder(vae), *critic.parameters()]
    how: dict[str, Any] = {"learning_rate": 5e-4, "weight_decay": 0.0, "parameters": trained}
    model.load_state_dict(train("sharpen", model, losses, steps=steps, work=work, **how))
    return vae.eval()


def _loaded(work: Path) -> Any:
    return AutoencoderKL.from_pretrained(work / "autoencoder", torch_dtype=torch.float32)
