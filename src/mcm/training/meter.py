"""What a training step needs, measured without doing it: bytes saved, bytes alive, FLOPs.

Works on fake tensors (a shape and a device, no content) and on real ones alike: the same operators are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mcm.methods.base import Batch, Method, Players
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.guidance import guided
from mcm.models.video import TextEmbedding
from mcm.training.device import autocast


@dataclass
class Step:
    """One forward and backward pass of `batch` clips, without weights, gradients and optimizer states.

    saved: bytes that the student's forward pass keeps for its backward pass; decoder: those that the picked frames'
    decoding keeps; peak: the most bytes alive at one moment; forward: FLOPs of one pass of the denoiser, without
    gradients; flops: of the step, whose parts `parts` names.
    """

    batch: int
    saved: int
    decoder: int
    peak: int
    forward: int
    flops: int
    parts: dict[str, int]


class Meter(TorchDispatchMode):
    """Inside, counts the bytes of the storages that operators make, until they are freed, and FLOPs.

    live: now; peak: the most at one moment; flops: of matrix products, convolutions and attention, a multiplication
    and an addition are two. known: tensors that were there before and do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._formulas = _flops()
        self._seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self._formulas.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class Saved:
    """Inside `counting`, bytes of the distinct storages that autograd keeps for a backward pass; `known` left out."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self._known = {t.untyped_storage()._cdata for t in known}
        self._kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())

    @contextmanager
    def counting(self) -> Iterator[None]:
        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._kept[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


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


def measure_step(
    method: Method,
    players: Players,
    shapes: FakeTensorMode | None,
    shape: tuple[int, ...],
    precision: str,
    batch: int,
) -> Step:
    """The step of `mcm.methods.mcm` with players over fake tensors of the mode `shapes` (None: over real ones).

    Their trained weights have gradients already. shape (C, T, h, w): of one clip's latents. Times are real numbers, the
    noisiest one, as no content may decide what is computed: every clip asks the teacher and the target.
    """
    codec, discriminator = players.model.codec, players.discriminator
    frames = isinstance(discriminator, FrameDiscriminator)
    rng = torch.Generator().manual_seed(0)
    with shapes or nullcontext():
        text, empty = (
            TextEmbedding(torch.zeros(n, players.model.text.length, players.model.text.width),
                          torch.zeros(n, players.model.text.width)) for n in (batch, 1)
        )  # fmt: skip
        z = torch.zeros(batch, *shape)
        picked = batch * method.frames_picked
        side = tuple(n * codec.factor for n in shape[2:])
        real, said = torch.zeros(picked, 3, *side), torch.empty(picked, players.model.text.width)
    material = Batch(z, text, empty, real, said, progress=0.999)  # past adversarial_start
    t = torch.full((batch,), int(players.model.path.t_max))
    networks = [*players.student.denoisers(), codec, players.motion, players.averaged_motion, discriminator]
    own = tensors(*networks)
    saved, decoder = Saved(own), Saved(own)
    parts: dict[str, int] = {}

    meter = Meter(own)

    def counted(part: str, work: Callable[[], Any]) -> Any:
        before = meter.flops
        done = work()
        parts[part] = parts.get(part, 0) + meter.flops - before
        return done

    def precise() -> Any:
        if precision == "fp32":
            return autocast(torch.device("cpu"), precision)
        return torch.autocast("cpu", dtype=torch.bfloat16)  # of shapes: nothing is computed

    def target() -> Tensor:
        with torch.no_grad():
            return players.averaged_motion(method.consistency(z, t, players.student.target(z, t, text).x0))

    def online() -> Tensor:
        with saved.counting():
            return method.online(players, z, t, text)

    def decoded(predicted: Tensor) -> Tensor:
        with decoder.counting():
            return method.picked_frames(players, predicted, rng)

    with meter:
        with precise():
            counted("teacher", lambda: guided(players.student.teacher, z, t, text, empty, 2.0))
            predicted = counted("student, forward", online)
            losses = {"motion": (players.motion(predicted) - counted("target", target)).square().mean()}
            if frames:
                pictures = counted("decoding", partial(decoded, predicted))
                losses |= counted("discriminator", lambda: method.student_adversarial(players, pictures, material, rng))
        counted("backward of the student's turn", torch.stack(list(losses.values())).sum().backward)
        del losses, predicted
        if frames:
            pictures = pictures.detach()
            with precise():
                judged = counted("discriminator", lambda: method.discriminator_losses(players, pictures, material, rng))
            counted("discriminator", torch.stack(list(judged.values())).sum().backward)
    forward = parts["target"]
    steps = 1 if method.trajectory == "one-step" else (1 + method.trajectory_steps) / 2
    parts["own clips"] = round(method.generated_probability * steps * forward)
    return Step(batch, saved.bytes, decoder.bytes, meter.peak, forward, sum(parts.values()), parts)
