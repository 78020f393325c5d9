"""A full student divided among ranks: FSDP2 (torch.distributed.fsdp.fully_shard).

Between updates every rank holds its part of the weights, of their averages and of the optimizer's state. For an
update the weights are gathered once and stay whole until its end: how many forward passes a micro-batch takes is drawn
at random (the student's own clips), so ranks could not gather layer by layer together. Gradients are summed over the
micro-batches, then averaged over ranks and divided among them in the last backward pass.

A checkpoint holds whole tensors, as a single process writes them, so that any number of ranks may go on from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mcm.training.ranks import Ranks


class Sharded:
    """The networks of a full student: the one that learns first, then its average where there is one."""

    def __init__(self, networks: Sequence[nn.Module], device: torch.device, ranks: Ranks) -> None:
        """Divides the networks in place: the optimizer must be made of their parameters afterwards."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        self.ranks = ranks
        mesh = init_device_mesh(device.type, (ranks.world,))
        for network in networks:
            for part in (*_blocks(network), network):
                fully_shard(part, mesh=mesh, reshard_after_forward=False)
        self.parts = [[m for m in network.modules() if isinstance(m, FSDPModule)] for network in networks]
        for part in self.parts[0]:
            part.set_reshard_after_backward(False, recurse=False)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every rank has all weights, and may use them without the others; changes to them are lost."""
        for part in self._all():
            self.ranks.collective(part.unshard)
        try:
            with warnings.catch_warnings():
                # It fears for gathering before the backward pass, which is done already.
                warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
                yield
        finally:
            for part in self._all():
                part.reshard()

    def exchange(self, last: bool) -> None:
        """Whether the next backward pass is the update's last one, which averages the gradients over ranks."""
        for part in self.parts[0]:
            part.set_requires_gradient_sync(last, recurse=False)

    def _all(self) -> Iterator[Any]:
        for parts in self.parts:
            yield from parts


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The network's blocks, each divided by itself, so that its gradients can go as soon as they are there."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))


def gathered(tree: Any) -> Any:
    """A tree of state with every divided tensor whole. All ranks must ask together."""
    if isinstance(tree, DTensor):
        return tree.full_tensor()
    return _mapped(tree, gathered)


def local(tree: Any) -> Any:
    """A tree of state with this rank's parts of the divided tensors."""
    if isinstance(tree, DTensor):
        return tree.to_local()
    return _mapped(tree, local)


def divided(tree: Any, like: Any) -> Any:
    """A tree of whole tensors with those divided that are so in `like`, a tree of the same form."""
    if isinstance(tree, Tensor):
        if not isinstance(like, DTensor):
            return tree
        # every rank has read the whole: nothing needs to be sent
        return distribute_tensor(tree.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    if isinstance(tree, dict):
        return {key: divided(value, like[key]) if key in like else value for key, value in tree.items()}
    return tree


def _mapped(tree: Any, change: Any) -> Any:
    if isinstance(tree, dict):
        return {key: change(value) for key, value in tree.items()}
    return type(tree)(map(change, tree)) if isinstance(tree, list | tuple) else tree
