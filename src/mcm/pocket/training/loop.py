"""The loop that trains every network of the zoo: AdamW, warm-up and cosine, an average of the weights, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from mcm.training.checkpoint import load_state, save_state

Losses = dict[str, Tensor]


def train(
    name: str,
    model: nn.Module,
    losses: Callable[[int, torch.Generator], Losses],
    *,
    steps: int,
    learning_rate: float,
    work: Path,
    parameters: Iterable[nn.Parameter] | None = None,
    weight_decay: float = 0.01,
    average: float = 0.999,
    warmup: int = 100,
    save_every_seconds: float = 120.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train `model` to minimise the sum of `losses(step, rng)`; go on from `work/<name>.safetensors` if it is there.

    Each step's random numbers come from (seed, step), so an interrupted run and an uninterrupted one see the same.

    Returns:
        The averaged weights as a state dict (buffers as they are).
    """
    chosen = list(parameters) if parameters is not None else list(model.parameters())
    for p in model.parameters():
        p.requires_grad_(False)
    for p in chosen:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    averaged = [p.detach().clone() for p in chosen]
    names = {id(p): key for key, p in model.named_parameters()}
    path, start = work / f"{name}.safetensors", 0
    if path.exists():
        state = load_state(path)
        model.load_state_dict(state["model"], strict=False)  # what is not trained is as the caller built it
        optimizer.load_state_dict(state["optimizer"])
        averaged, start = state["averaged"], state["step"]
        print(f"{name}: resumed at step {start} of {steps}", flush=True)

    def save(step: int) -> None:
        trained = {names[id(p)]: p.detach() for p in chosen}
        state = {"model": trained, "optimizer": optimizer.state_dict(), "averaged": averaged, "step": step}
        save_state(path, state)

    saved = begun = time.monotonic()
    log: dict[str, float] = {}
    for step in range(start, steps):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        fraction = step / steps
        rate = learning_rate * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        parts = losses(step, rng)
        total = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        decay = min(average, (step + 1) / (step + 10))
        torch._foreach_lerp_(averaged, [p.detach() for p in chosen], 1 - decay)
        for key, value in parts.items():
            log[key] = 0.98 * log.get(key, value.item()) + 0.02 * value.item()
        if not math.isfinite(total.item()):
            raise FloatingPointError(f"{name}: the loss is {total.item()} at step {step}")
        if step % 50 == 0 or step == steps - 1:
            seconds = (time.monotonic() - begun) / (step - start + 1)
            shown = "  ".join(f"{key} {value:.4f}" for key, value in log.items())
            print(f"{name} {step}/{steps}  {shown}  {seconds:.2f} s/step", flush=True)
        if time.monotonic() - saved > save_every_seconds:
            save(step + 1)
            saved = time.monotonic()
    save(steps)
    weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
    for p, value in zip(chosen, averaged, strict=True):
        weights[names[id(p)]] = value
    return weights
