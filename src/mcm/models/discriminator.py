"""The frame discriminator: small text-conditioned heads on frozen features.

After Projected GAN (arXiv 2111.01007) and StyleGAN-T (arXiv 2301.09515), from the papers' descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from mcm.models.augment import POLICY
from mcm.models.augment import augment as augmented
from mcm.models.features import FrozenFeatures

WINDOW = 9  # tokens that a head's second layer sees at once
GROUPS = 8


class FrameHead(nn.Module):
    """One head: features (N, L, D) -> a logit for each token, (N, L).

    A 1-wide and a residual 9-wide convolution along the tokens, spectrally normalised (arXiv 1802.05957).
    Where the text is heard, the logit is psi(h) + <P h, V text> / sqrt(width), the projection discriminator
    (arXiv 1802.05637). Norms are within one picture: no frame sees another one of its batch, and any batch
    size goes.
    """

    def __init__(self, dim: int, width: int, text_dim: int | None) -> None:
        super().__init__()
        groups = GROUPS if width % GROUPS == 0 else 1
        self.enter = spectral_norm(nn.Conv1d(dim, width, 1))
        self.enter_norm = nn.GroupNorm(groups, width)
        self.mix = spectral_norm(
            nn.Conv1d(width, width, WINDOW, padding=WINDOW // 2, padding_mode="circular")
        )
        self.mix_norm = nn.GroupNorm(groups, width)
        self.score = spectral_norm(nn.Conv1d(width, 1, 1))
        self.project = spectral_norm(nn.Conv1d(width, width, 1)) if text_dim else None
        self.embed = spectral_norm(nn.Linear(text_dim, width)) if text_dim else None

    def forward(self, features: Tensor, text: Tensor | None) -> Tensor:
        h = features.transpose(1, 2)
        tokens = h.shape[-1]
        if tokens < WINDOW // 2:  # a circle shorter than the padding: go round it more than once
            h = h.repeat(1, 1, -(-(WINDOW // 2) // tokens))
        h = F.leaky_relu(self.enter_norm(self.enter(h)), 0.2)
        h = (h + F.leaky_relu(self.mix_norm(self.mix(h)), 0.2)) / 2**0.5
        logits = self.score(h)[:, 0]
        if self.project is not None and self.embed is not None:
            if text is None:
                raise ValueError("this discriminator is conditioned on text: expected text (N, E), got None")
            # the towers' pooled states have any scale; the heads see them with unit variance
            heard = self.embed(F.layer_norm(text, text.shape[-1:]))
            logits = logits + (self.project(h) * heard[:, :, None]).sum(1) / heard.shape[-1] ** 0.5
        return logits[:, :tokens]


class FrameDiscriminator(nn.Module):
    """Is this frame from the wanted pictures, given its caption? High logits say yes.

    features: frozen, shared, and not part of the state dict; their gradients reach the frames. Heads are
    found by the features' names.
    """

    def __init__(
        self,
        features: FrozenFeatures,
        text_dim: int,
        head_width: int = 64,
        conditioning: bool = True,
        augment: float = 1.0,
        policy: Sequence[str] = POLICY,
        rng: torch.Generator | None = None,
    ) -> None:
        """text_dim: E of the pooled text. conditioning: whether the heads hear the text. augment: strength in [0, 1] of
        the augmentation of its frames, 0 is none; policy: its kinds. rng: draws the initial weights;
        without it torch's global generator does."""
        super().__init__()
        self.features = features
        self.augment, self.policy = augment, policy
        self.conditioning = conditioning
        with _seeded(rng):
            self.heads = nn.ModuleDict(
                {
                    name: FrameHead(features.dims[name], head_width, text_dim if conditioning else None)
                    for name in features.names
                }
            )
        self.register_state_dict_post_hook(_without_features)
        self.register_load_state_dict_post_hook(_features_not_missed)

    def forward(
        self, frames: Tensor, text: Tensor | None = None, rng: torch.Generator | None = None
    ) -> list[Tensor]:
        """frames (N, 3, H, W) in [-1, 1], their captions' pooled text (N, E) -> for each head logits (N, L).

        rng: draws the augmentation. ValueError where one of the two is needed and missing.
        """
        return self.from_features(self.see(frames, rng), text)

    def see(self, frames: Tensor, rng: torch.Generator | None = None) -> list[Tensor]:
        """The features (N, L, D) of the frames (N, 3, H, W), augmented first where that is on."""
        if self.augment:
            if rng is None:
                raise ValueError("this discriminator augments its frames: expected a generator rng, got None")
            frames = augmented(frames, rng, self.augment, self.policy)
        return self.features(frames)

    def from_features(self, features: Sequence[Tensor], text: Tensor | None = None) -> list[Tensor]:
        """What `see` gave -> logits, as `forward`; for penalties on the gradient in the features."""
        return [
            self.heads[name](seen, text) for name, seen in zip(self.features.names, features, strict=True)
        ]

    @torch.no_grad()
    def skip(self, passes: int) -> None:
        """Move the spectral norms on as so many passes in training would."""
        for _ in range(passes if self.training else 0):
            for layer in self.heads.modules():
                if is_parametrized(layer, "weight"):
                    _ = layer.weight  # reading it is one step of the power iteration

    def trainable(self) -> dict[str, nn.Parameter]:
        """The heads' weights by stable names."""
        return {f"heads.{name}": weight for name, weight in self.heads.named_parameters()}

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """For the student's turn: logits made inside give gradients to the frames, none to the heads.

        The heads' spectral norms are not moved either. The backward pass may come later, outside.
        """
        weights = list(self.heads.parameters())
        needed = [weight.requires_grad for weight in weights]
        training = self.heads.training
        self.heads.requires_grad_(False).eval()
        try:
            yield
        finally:
            self.heads.train(training)
            for weight, need in zip(weights, needed, strict=True):
                weight.requires_grad_(need)


@contextmanager
def _seeded(rng: torch.Generator | None) -> Iterator[None]:
    """torch's global generator seeded from `rng`, and left afterwards as it was: nn's layers know no
    other."""
    if rng is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng, device=rng.device)))
        yield


def _without_features(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}features.")]:
        del state[name]


def _features_not_missed(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if "features." not in name]
