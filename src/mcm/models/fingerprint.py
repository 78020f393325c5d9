"""What a network is, in 64 letters: a student belongs to one teacher, cached latents to one autoencoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcm.models.text import TextEncoder

SIGNS = 64  # looked at in every tensor
_CAPTION = "A woman in red (aged 31) waves; it's night in the park."
_ORIGIN = {"transformers_version", "dtype", "torch_dtype", "architectures"}  # of a configuration: not what it says


def fingerprint(network: nn.Module) -> str:
    """SHA-256, in hex, of a diffusers network: its configuration and the signs of some weights of every tensor.

    Signs, since they stay what they are in whatever precision the weights are loaded. Keys of the configuration that
    tell of its origin (those with an underscore) do not count. Ask before adapters are put in.
    """
    config: Mapping[str, Any] = network.config  # pyright: ignore[reportAssignmentType]
    told = hashlib.sha256(
        json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, sort_keys=True).encode()
    )
    return _with_weights(told, network)


def text_fingerprint(text: TextEncoder) -> str:
    """The same of a text encoder: its weights and configuration, and what its tokenizer makes of a caption."""
    config: dict[str, Any] = text.network.config.to_dict()
    plain = {k: v for k, v in config.items() if not k.startswith("_") and k not in _ORIGIN}
    ids = text.tokenizer(_CAPTION, truncation=True, max_length=text.length).input_ids
    said = [type(text).__name__, text.length, ids, plain]
    return _with_weights(hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()), text.network)


def _with_weights(told: Any, network: nn.Module) -> str:
    for name, weight in sorted(network.named_parameters()):
        told.update(name.encode())
        told.update(bytes(_signs(weight.detach())))
    return told.hexdigest()


def _signs(weight: Tensor) -> list[int]:
    """Sign bits of up to `SIGNS` weights, evenly spread."""
    # In double: single precision rounds the last place of a tensor of 2^24 weights past its end.
    chosen = torch.linspace(0, weight.numel() - 1, min(SIGNS, weight.numel()), dtype=torch.float64).round().long()
    return torch.signbit(weight.flatten()[chosen.to(weight.device)]).tolist()
