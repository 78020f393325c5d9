"""Gradient checkpointing (arXiv 1604.06174): activations are computed again in the backward pass and not kept.

diffusers has none for UNet3DConditionModel, and for UNetMotionModel it leaves out the motion modules that are not in
the middle. Networks of that kind are checkpointed here, layer by layer: of a layer only its inputs are kept. Outputs
and gradients stay what they are, modules keep their names and places: `forward` alone is replaced, on the instances.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import nn
from torch.utils import checkpoint as torch_checkpoint

from mcm.errors import UserError

Run = Callable[..., Any]  # as torch.utils.checkpoint.checkpoint: (function, *args, **kwargs) -> what the function gives
_RUN = "_checkpointing_run"


def can_checkpoint(network: nn.Module) -> bool:
    """Whether `checkpoint` can do it."""
    return bool(_layers(network)) or _by_diffusers(network)


def checkpoint(network: nn.Module, run: Run | None = None) -> None:
    """Gradient checkpointing on, in place; UserError where the network has no blocks of layers.

    UNets, decoders, and whatever diffusers cannot checkpoint: layer by layer (see the module). Transformers: as
    diffusers does it, block by block. run: in the place of torch's checkpoint without reentrance.
    """
    layers = _layers(network)
    if not layers and not _by_diffusers(network):
        raise UserError(
            f"gradient checkpointing: a {type(network).__name__} has no blocks of layers to be computed again; switch "
            "it off (smaller batches with more accumulation save memory too)"
        )
    if not layers:
        cast(Any, network).enable_gradient_checkpointing(run)
    for layer in layers:
        setattr(layer, _RUN, run or partial(torch_checkpoint.checkpoint, use_reentrant=False))
        layer.forward = MethodType(_forward, layer)  # a bound method: deepcopy binds the copy's to the copy


def uncheckpoint(network: nn.Module) -> None:
    """The network as it was before `checkpoint`."""
    layers = _layers(network)
    if not layers and _by_diffusers(network):
        cast(Any, network).disable_gradient_checkpointing()
    for layer in layers:
        if vars(layer).pop(_RUN, None) is not None:
            del layer.forward


def _by_diffusers(network: nn.Module) -> bool:
    return bool(getattr(network, "_supports_gradient_checkpointing", False))


def _layers(network: nn.Module) -> list[nn.Module]:
    """The entries of the lists (resnets, attentions, temp_convs, ...) in the network's blocks.

    Blocks are the network's children, and the entries of those that are lists. Empty for what diffusers does well.
    """
    if _by_diffusers(network) and not hasattr(network, "up_blocks"):
        return []
    blocks: list[nn.Module] = []
    for child in network.children():
        blocks += child if isinstance(child, nn.ModuleList) else [child]
    lists = [part for block in blocks for part in block.children() if isinstance(part, nn.ModuleList)]
    return [entry for part in lists for entry in part if any(True for _ in entry.children())]  # no lone convolution


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer's own forward, to be run again if there will be a backward pass."""
    own = MethodType(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return own(*args, **kwargs)
    return getattr(layer, _RUN)(own, *args, **kwargs)
