"""What operators need: bytes alive, FLOPs, bytes moved, counted as they run or as their shapes go by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_CONVOLUTIONS = {torch.ops.aten.convolution, torch.ops.aten.convolution_backward}


class Work(NamedTuple):
    """FLOPs of convolutions and of matrix products (attention among them; a multiplication and an addition are two),
    and the bytes that the other operators read and write."""

    convolutions: float = 0
    products: float = 0
    moved: float = 0

    @property
    def flops(self) -> float:
        return self.convolutions + self.products

    def plus(self, other: Work, times: float = 1) -> Work:
        """The sum of this and of so many times `other`."""
        return Work(*(mine + times * its for mine, its in zip(self, other, strict=True)))


class Meter(TorchDispatchMode):
    """Inside, counts the bytes of the storages that operators make, until they are freed, and their `Work`.

    live: bytes now; peak: the most at one moment, and fixed: what of that are copies of weights, which do not grow with
    the batch; work: by `part`, a word that may be changed on the way. known: tensors that were there before and do not
    count, as weights. Of tensors on the meta device, which have a shape and no content,
    results are remembered by the shapes that went in: torch works out those of normalisations in Python, slowly.
    """

    def __init__(self, known: Iterable[Tensor] = (), results: dict[Any, Any] | None = None) -> None:
        """results: what another meter remembered, to go on from; it is added to."""
        super().__init__()
        self.live = self.peak = self.fixed = self._fixed = 0
        self.part = ""
        self.work: dict[str, Work] = {}
        self._formulas = _flops()
        self._known = {t.untyped_storage()._cdata for t in known}
        self._seen: set[int] = set()
        self._pure: dict[Any, bool] = {}
        self._results = {} if results is None else results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self._pure:
            self._pure[func] = _is_pure(func)
        if not self._pure[func]:
            out = func(*args, **kwargs)
            for tensor in _tensors(out):
                self._hold(tensor, fixed=False)
            return out
        given = [*_tensors(args), *_tensors(tuple(kwargs.values()))]
        out, work = self._remembered(func, args, kwargs, given)
        self.work[self.part] = self.work.get(self.part, Work()).plus(work)
        fixed = len(given) == 1 and given[0].untyped_storage()._cdata in self._known
        for tensor in _tensors(out):
            self._hold(tensor, fixed)
        return out

    def _remembered(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> tuple[Any, Work]:
        """The operator's result and work; on the meta device new tensors like those of the same shapes before."""
        if not given or any(tensor.device.type != "meta" for tensor in given):
            out = func(*args, **kwargs)
            return out, self._counted(func, args, kwargs, given, out)
        key = (func, _key(args), _key(tuple(kwargs.items())))
        if key not in self._results:
            out = func(*args, **kwargs)
            work = self._counted(func, args, kwargs, given, out)
            several = isinstance(out, tuple | list)
            made = out if several else (out,)
            if all(t is None or (isinstance(t, Tensor) and t.device.type == "meta") for t in made):
                parts = [None if t is None else (tuple(t.shape), t.stride(), t.dtype) for t in made]
                self._results[key] = (type(out) if several else None), parts, work
            return out, work
        kind, parts, work = self._results[key]
        new = [None if p is None else torch.empty_strided(p[0], p[1], dtype=p[2], device="meta") for p in parts]
        return (new[0] if kind is None else kind(new)), work

    def _counted(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], out: Any) -> Work:
        formula = self._formulas.get(func.overloadpacket)
        if formula is None:
            return Work(moved=sum(t.numel() * t.element_size() for t in (*given, *_tensors(out))))
        flops = formula(*args, **kwargs, out_val=out)
        return Work(convolutions=flops) if func.overloadpacket in _CONVOLUTIONS else Work(products=flops)

    def _hold(self, tensor: Tensor, fixed: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in self._known:
            return
        self._seen.add(key)
        self.live += size
        self._fixed += size * fixed
        if self.live > self.peak:
            self.peak, self.fixed = self.live, self._fixed
        finalize(storage, self._free, key, size, fixed)

    def _free(self, key: int, size: int, fixed: bool) -> None:
        self._seen.discard(key)
        self.live -= size
        self._fixed -= size * fixed


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in an operator's arguments or results (lists in them are flat)."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, tuple | list):
        return []
    return [t for each in value for t in ((each,) if isinstance(each, Tensor) else _tensors(each))]


def _is_pure(func: Any) -> bool:
    """Whether an operator makes new tensors alone: it changes none and returns no view of one."""
    schema = func._schema
    aliases = [a.alias_info for a in (*schema.arguments, *schema.returns)]
    return not any(aliases) and func is not torch.ops.aten._unsafe_view.default  # a view whose schema does not say so


def _key(value: Any) -> Any:
    """What of an argument decides the result's shape."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    return type(value), value


def _attention(q: Any, k: Any, v: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


def _flops() -> dict[Any, Callable[..., int]]:
    """torch's table of FlopCounterMode, and the CPU's attention, which it lacks. (The mode itself cannot be used: its
    module tracker does not stand the gradient penalty's inner backward pass.)"""
    aten: Any = torch.ops.aten
    return {
        **flop_registry,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }


def tensors(*modules: nn.Module | None) -> list[Tensor]:
    """Parameters, their gradients, and buffers."""
    found: list[Tensor] = []
    for module in modules:
        if module is not None:
            found += [*module.parameters(), *module.buffers()]
            found += [p.grad for p in module.parameters() if p.grad is not None]
    return found
