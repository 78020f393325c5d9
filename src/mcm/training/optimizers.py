"""The optimizers of a recipe, their state, and clipping."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mcm.errors import UserError
from mcm.recipe import OptimConfig
from mcm.training.sharded import divided


def make_optimizer(
    optim: OptimConfig, weights: Sequence[nn.Parameter], rate: float, sharded: bool = False
) -> torch.optim.Optimizer:
    """AdamW in the version that the recipe names. UserError where a package is missing, or the weights are sharded."""
    if optim.name == "adamw-8bit":
        if sharded:
            raise UserError(
                'optim.name is "adamw-8bit", whose state cannot be divided among ranks: use "adamw" where student.kind '
                'is "full" and several ranks run'
            )
        kind = eight_bit()
        return kind(weights, lr=rate, betas=optim.betas, weight_decay=optim.weight_decay)
    how: dict[str, Any] = {"fused": True} if optim.name == "adamw-fused" else {}
    if sharded:  # whole and divided weights stand side by side, which lists of tensors do not take
        how = {"foreach": False}
    return torch.optim.AdamW(weights, lr=rate, betas=optim.betas, weight_decay=optim.weight_decay, **how)


def eight_bit() -> Any:
    """AdamW with its state in eight bits (arXiv 2110.02861). UserError where bitsandbytes is missing."""
    try:
        return importlib.import_module("bitsandbytes").optim.AdamW8bit
    except ImportError as error:
        raise UserError(
            'optim.name is "adamw-8bit", which needs the package bitsandbytes: pip install '
            '"motion-consistency[8bit]", or use "adamw"'
        ) from error


def clip(weights: Sequence[nn.Parameter], limit: float) -> float:
    """Scale the gradients to a norm of at most `limit`, all ranks' parts together; returns the norm before."""
    if not any(isinstance(weight.grad, DTensor) for weight in weights):
        return float(nn.utils.clip_grad_norm_(weights, limit))
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    squares = [_norm(gradient).square() for gradient in gradients]
    norm = torch.stack(squares).sum().sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(scale)
    return float(norm)


def _norm(gradient: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(gradient)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def replicated(weights: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that every rank holds whole: FSDP2 averages the others' gradients itself."""
    return [weight for weight in weights if not isinstance(weight, DTensor)]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state without what the recipe says anyway (a None or a callable cannot be stored)."""
    state = optimizer.state_dict()
    plain = (int, float, bool, str, list, tuple, Tensor, type(None))
    groups = [{k: v for k, v in group.items() if isinstance(v, plain)} for group in state["param_groups"]]
    return {"state": state["state"], "param_groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """What `optimizer_state` gave, whole; how the steps are computed (fused or not) stays this run's."""
    (group,), weights = optimizer.state_dict()["param_groups"], optimizer.param_groups[0]["params"]
    parts = {
        number: divided(values, {k: weights[number] for k, v in values.items() if _is_like(v, weights[number])})
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": parts, "param_groups": [group]})


def _is_like(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape and value.ndim > 0


def scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales the losses of "fp16", whose gradients would vanish; does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """One step, unless its gradients overflowed; the scaler knows of no gradients at all only as of a mistake."""
    if not scaler.is_enabled():
        optimizer.step()
    elif any(weight.grad is not None for group in optimizer.param_groups for weight in group["params"]):
        scaler.step(optimizer)


def overflowed(norm: float, scaler: torch.amp.GradScaler) -> bool:
    """Whether gradients in float16 were too large for it, so that the scaler skips this step and scales less."""
    return scaler.is_enabled() and not math.isfinite(norm) and scaler.get_scale() > 1.0
