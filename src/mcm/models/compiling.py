"""torch.compile for networks: in place, so that names, weights and what is saved stay what they are.

Of transformers the blocks that repeat are compiled, as diffusers does where it knows them: all share what is compiled.
UNets, in which hardly two layers are alike, are compiled whole. Adapters that are switched, other shapes and passes
without gradients are compiled when they are first met.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mcm.errors import UserError


def check_compiler(device: torch.device) -> None:
    """UserError where torch cannot compile for the device (the CPU needs a C++ compiler, CUDA triton)."""
    try:
        torch.compile(_doubled, dynamic=False)(torch.ones(3, device=device))
    except Exception as error:  # whatever a missing compiler makes torch say: it has no one class of error for it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise UserError(
            f"training.compile is true, but torch cannot compile for {device.type} here: {reason}; install a C++ "
            "compiler (for a GPU: triton), or leave it false"
        ) from error


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return (2 * x).sin()


def regions(network: nn.Module) -> list[nn.Module]:
    """What of a network is compiled, part by part; see the module."""
    if hasattr(network, "up_blocks"):
        return [network]
    names = getattr(network, "_repeated_blocks", None) or ()
    named = [module for module in network.modules() if type(module).__name__ in names]
    if named:
        return named
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    blocks = [block for part in lists for block in part if any(True for _ in block.children())]
    if blocks:
        return blocks
    several = [child for child in network.children() if hasattr(child, "config")]  # a network of networks
    return [region for child in several for region in regions(child)] or [network]


def compile_network(network: nn.Module, **settings: Any) -> None:
    """Compile in place; settings: of torch.compile."""
    for region in regions(network):
        region.compile(**settings)
