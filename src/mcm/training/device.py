"""The one place that chooses device and precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from mcm.errors import UserError


def chosen_device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU (as accelerate decides)."""
    from accelerate import PartialState

    return torch.device(PartialState().device or "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context that forward passes run in: nothing for "fp32", autocast for "bf16" and "fp16".

    Raises:
        UserError: for half precision on the CPU, where it is hundreds of times slower than float32.
    """
    if precision == "fp32":
        return nullcontext()
    if device.type == "cpu":
        raise UserError(f"training.precision is {precision!r}, but this machine computes on its CPU: use fp32 there")
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
