"""A training step, measured: the method's own turns and the backward passes that the trainer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcm.methods.base import Batch, Method, Players
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.video import TextEmbedding
from mcm.planning.meter import Meter, Work, tensors
from mcm.planning.shapes import Shapes

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
OWN = "own clips"


@dataclass
class Step:
    """One forward and backward pass of `batch` clips, without weights, gradients and optimizer states.

    saved: bytes that the student's forward pass leaves for its backward pass; decoder: those that decoding the picked
    frames leaves; peak: the most bytes alive at one moment, and fixed: those of it that are copies of weights (of
    autocast); forward: FLOPs of one pass of the student; parts: the `Work` of the step's parts, own clips as often as
    the method makes them.
    """

    batch: int
    saved: int
    decoder: int
    peak: int
    fixed: int
    forward: float
    parts: dict[str, Work]

    @property
    def work(self) -> Work:
        """Of all parts together."""
        total = Work()
        for part in self.parts.values():
            total = total.plus(part)
        return total

    def of(self, batch: int) -> Step:
        """The step of another number of clips: all but the copies of weights grows with it."""
        if batch == self.batch:
            return self
        times = batch / self.batch
        parts = {name: Work().plus(work, times) for name, work in self.parts.items()}
        peak = self.fixed + round((self.peak - self.fixed) * times)
        saved, decoder = (round(n * times) for n in (self.saved, self.decoder))
        return Step(batch, saved, decoder, peak, self.fixed, self.forward * times, parts)


def measure_step(
    method: Method,
    players: Players,
    shape: tuple[int, ...],
    precision: str,
    batch: int,
    results: dict[Any, Any] | None = None,
) -> Step:
    """The step of `batch` clips at the moment of the run that needs the most (`Method.heaviest`).

    players: on the meta device, or real ones on the CPU (fp32), whose trained weights have gradients already. shape
    (C, T, h, w): of one clip's latents. results: of the `Meter`.
    """
    model, discriminator = players.model, players.discriminator
    device = next(model.denoiser.parameters()).device
    frames = batch * method.frames_picked
    side = tuple(n * model.codec.factor for n in shape[2:])
    text, empty = (
        TextEmbedding(torch.zeros(n, model.text.length, model.text.width, device=device),
                      torch.zeros(n, model.text.width, device=device)) for n in (batch, 1)
    )  # fmt: skip
    material = Batch(torch.zeros(batch, *shape, device=device), text, empty, progress=method.heaviest)
    if isinstance(discriminator, FrameDiscriminator):
        material = material._replace(
            real_frames=torch.zeros(frames, 3, *side, device=device),
            real_text=torch.zeros(frames, model.text.width, device=device),
        )
    networks = [*players.student.denoisers(), model.codec, players.motion, players.averaged_motion, discriminator]
    meter = Meter(tensors(*networks), results)
    rng = torch.Generator().manual_seed(0)
    mode = Shapes(HALF.get(precision))
    with meter, mode, _labelled(meter, method, players) as seen:
        turns = method.turns(players, material, rng)
        while True:
            meter.part = "discriminator and losses"
            turn = next(turns, None)
            if turn is None:
                break
            total = torch.stack([loss.float() for loss in turn.losses.values()]).sum()
            meter.part = f"backward of the {turn.player}"
            total.backward()
            del total, turn
    parts = meter.work
    if OWN in parts:  # as many as are made on average, of all that were made here
        steps = 1 if method.trajectory == "one-step" else (1 + method.trajectory_steps) / 2
        parts[OWN] = Work().plus(parts[OWN], method.mean_own_share * steps / seen["calls"])
    forward = parts["student, forward"].flops
    return Step(batch, seen["saved"], seen["decoder"], meter.peak, meter.fixed, forward, parts)


@contextmanager
def _labelled(meter: Meter, method: Method, players: Players) -> Iterator[dict[str, int]]:
    """Inside, the work of the denoiser and of the codec goes to parts of its own; yields what they left behind."""
    seen = {"saved": 0, "decoder": 0, "calls": 0}
    student, codec = players.student, players.model.codec

    def labelled(work: Callable[..., Any], part: str, kept: str | None = None) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            own = part == "student, forward" and not torch.is_grad_enabled()
            before, outside, meter.part = meter.live, meter.part, OWN if own and method.generated_probability else part
            seen["calls"] += own
            out = work(*args, **kwargs)
            meter.part = outside
            if kept is not None and torch.is_grad_enabled():
                seen[kept] = max(seen[kept], meter.live - before)
            return out

        return run

    def last_frames(z: Tensor, index: Tensor) -> Tensor:
        """The last frames in the place of drawn ones: a codec that compresses time decodes those before, too."""
        most, picked = codec.pixel_frames(z.shape[2]), index.shape[1]
        return decode(z, torch.arange(most - picked, most).expand(len(z), -1))

    decode = labelled(codec.decode_frames, "decoding", "decoder")
    instead: dict[Any, dict[str, Any]] = {
        student: {
            "teacher": labelled(student.teacher, "teacher"),
            "target": labelled(student.target, "target"),
            "student": labelled(student.student, "student, forward", "saved"),
        },
        codec: {"decode_frames": last_frames},
    }
    for owner, works in instead.items():
        for name, work in works.items():
            setattr(owner, name, work)
    try:
        yield seen
    finally:
        for owner, works in instead.items():
            for name in works:
                delattr(owner, name)
