"""Running a training step's own code over tensors that have a shape and no content (torch's meta device)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

# After torch's list of what autocast does on CUDA: these in half precision, those in float32.
_LOWER = {
    F.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm,
    Tensor.bmm, torch.baddbmm, torch.addmm, torch.mm, torch.einsum,
}  # fmt: skip
_HIGHER = {
    F.group_norm, F.layer_norm, torch.softmax, Tensor.softmax, F.softmax, torch.sum, Tensor.sum, torch.pow, Tensor.pow,
    Tensor.__pow__, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.rsqrt, Tensor.rsqrt, F.softplus, F.mse_loss,
}  # fmt: skip


class Shapes(TorchFunctionMode):
    """Inside, code that looks at content goes on as where it needs the most, and attention and autocast are a card's.

    A question whether any element is true is answered with yes, and a choice of rows by a mask takes them all.
    Attention does not make the whole matrix of weights: the kernels of CPUs and cards do not, though the meta device
    does. dtype: of autocast, which does nothing on the meta device; None: none.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.any and args[0].device.type == "meta" and len(args) == 1 and not kwargs:
            return torch.tensor(True, device="cpu")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and _masks(args):
            part = func(args[0], slice(None), *args[2:])
            return part.clone() if func is Tensor.__getitem__ else part
        if func is F.scaled_dot_product_attention and (args or [kwargs["query"]])[0].device.type == "meta":
            return self._attention(*args, **kwargs)
        if self.dtype is not None and func in _LOWER:
            args, kwargs = self._cast(args, self.dtype), self._cast(kwargs, self.dtype)
        elif self.dtype is not None and func in _HIGHER:
            args, kwargs = self._cast(args, torch.float32), self._cast(kwargs, torch.float32)
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if self.dtype is not None:
            query, key, value = self._cast((query, key, value), self.dtype)
        if enable_gqa:  # fewer keys than queries have heads, each used by several
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], dim=-3) for t in (key, value))
        kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            floating = value.is_floating_point() and value.dtype != torch.float64 and value.device.type == "meta"
            return value.to(dtype) if floating and value.dtype != dtype else value
        if isinstance(value, tuple | list):
            return type(value)(self._cast(each, dtype) for each in value)
        if isinstance(value, dict):
            return {name: self._cast(each, dtype) for name, each in value.items()}
        return value


def recomputing(dtype: torch.dtype | None) -> Callable[..., Any]:
    """For `mcm.models.checkpointing.checkpoint`: as torch's own, but the second pass is inside `Shapes`, too (inside a
    backward pass no mode of torch's functions is on)."""

    def run(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def contexts() -> tuple[Any, Any]:
            return nullcontext(), Shapes(dtype)

        return checkpoint(layer, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


def _masks(args: Any) -> bool:
    index = args[1]
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.device.type == "meta"
