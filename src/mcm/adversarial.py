"""The adversarial losses and the gradient penalty, on the logits of a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mcm.errors import one_of

Logits = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class AdversarialLoss:
    """One of "hinge" (arXiv 1705.02894), "wasserstein" (1701.07875), "bce" (non-saturating, 1406.2661).

    Logits are a tensor of any shape or a list of them, one a head; the losses are means over the elements of
    a head, then over the heads, so that every head weighs the same whatever its size. High logits say "real".
    """

    name: str
    names: ClassVar[tuple[str, ...]] = ("hinge", "wasserstein", "bce")

    def __post_init__(self) -> None:
        if self.name not in self.names:
            raise one_of("adversarial loss", self.name, self.names)

    def generator(self, logits: Logits) -> Tensor:
        """The generator's loss, a scalar, from the logits of what it made: -D, or softplus(-D) for "bce"."""
        return _mean([F.softplus(-d) if self.name == "bce" else -d for d in _heads(logits)])

    def discriminator(self, real: Logits, fake: Logits) -> Tensor:
        """The discriminator's loss, a scalar.

        hinge: relu(1 - real) + relu(1 + fake); wasserstein: fake - real; bce: softplus(-real) +
        softplus(fake). `real` and `fake` may differ in their numbers of pictures.
        """
        if self.name == "hinge":
            return _mean([F.relu(1 - d) for d in _heads(real)]) + self.rejected(fake)
        if self.name == "bce":
            return _mean([F.softplus(-d) for d in _heads(real)]) + self.rejected(fake)
        return self.rejected(fake) - _mean(_heads(real))

    def rejected(self, logits: Logits) -> Tensor:
        """The half of `discriminator` that is of what it shall not take for real, a scalar."""
        if self.name == "hinge":
            return _mean([F.relu(1 + d) for d in _heads(logits)])
        return _mean([F.softplus(d) if self.name == "bce" else d for d in _heads(logits)])


def gradient_penalty(logits: Logits, inputs: Sequence[Tensor]) -> Tensor:
    """R1 (arXiv 1801.04406) on features: the mean over the pictures of |d D / d inputs|^2, a scalar.

    logits: all heads' logits, computed from `inputs`; D is their sum over a picture. inputs: the features,
    each (N, ...) with requires_grad, N the pictures. The square runs over all inputs and elements. The result
    is differentiable in the discriminator's weights. Heads must not mix the pictures of a batch (no batch
    norm).
    """
    total = torch.stack([head.float().sum() for head in _heads(logits)]).sum()
    gradients = torch.autograd.grad(total, list(inputs), create_graph=True)
    return torch.stack([g.float().square().sum() / g.shape[0] for g in gradients]).sum()


def _heads(logits: Logits) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else list(logits)


def _mean(heads: list[Tensor]) -> Tensor:
    return torch.stack([head.float().mean() for head in heads]).mean()
