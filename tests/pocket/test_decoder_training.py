"""The decoder's sharpening: who learns from what, and how loud the critic may be."""

from __future__ import annotations

import torch

from mcm.pocket.training.autoencoder import build
from mcm.pocket.training.decoder import CRITIC_SHARE, PatchCritic, balance, objectives, paired


def players() -> tuple[torch.nn.Module, PatchCritic, torch.Tensor]:
    torch.manual_seed(0)
    vae = build(latent_channels=4)
    for p in [*vae.encoder.parameters(), *vae.quant_conv.parameters()]:
        p.requires_grad_(False)
    return vae, PatchCritic(width=8), torch.rand((4, 3, 64, 64)) * 2 - 1


def test_each_player_learns_from_its_own_losses_alone() -> None:
    vae, critic, x = players()
    losses = objectives(vae, critic, x, torch.ones(4, 1, 64, 64), torch.Generator().manual_seed(1))
    (losses["pixels"] + losses["criticism"]).backward(retain_graph=True)
    assert all(p.grad is None for p in critic.parameters())
    assert all(p.grad is not None for p in vae.decoder.parameters())
    assert all(p.grad is None for p in vae.encoder.parameters())
    before = [p.grad.clone() for p in vae.decoder.parameters()]
    losses["critic"].backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert all(torch.equal(a, p.grad) for a, p in zip(before, vae.decoder.parameters(), strict=True))


def test_the_critic_is_a_fixed_share_as_loud_as_the_errors_at_the_last_layer() -> None:
    vae, critic, x = players()
    losses = objectives(vae, critic, x, torch.ones(4, 1, 64, 64), torch.Generator().manual_seed(1))
    last = vae.decoder.conv_out.weight
    errors = losses["pixels"] + losses["squares"] + losses["edges"]
    (of_errors,) = torch.autograd.grad(errors, last, retain_graph=True)
    (of_critic,) = torch.autograd.grad(losses["criticism"], last)
    assert torch.isclose(of_critic.norm(), CRITIC_SHARE * of_errors.norm(), rtol=0.02)


def test_balance_of_a_silent_critic_is_bounded() -> None:
    w = torch.ones(3, requires_grad=True)
    assert balance((w**2).sum(), (0 * w).sum(), w) <= 1e4


def test_pairs_are_neighbours() -> None:
    x = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 2, 2)
    pairs = paired(x)
    assert pairs.shape == (2, 6, 2, 2)
    assert pairs[1, :, 0, 0].tolist() == [2, 2, 2, 3, 3, 3]
