"""A tiny stage for methods and the trainer: tiny teacher, student, discriminator, and random material."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from tiny import tiny_animatediff, tiny_dinov2, tiny_modelscope
from tiny_transformers import tiny_cogvideox, tiny_wan

from mcm.methods.base import Batch, Method, Players
from mcm.models.bases import Bases
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.features import FrozenFeatures
from mcm.models.student import Student
from mcm.models.video import load_video_model
from mcm.motion import motion_representation
from mcm.training.trainer import Plan, Schedule, Trainer

CAPTIONS = ["a red puppet walks", "a blue puppet jumps", "a puppet at night", "a red puppet in the park"]
FRAMES = 4


def make_players(folder: Path, method: Method, family: str = "animatediff", kind: str = "lora") -> Players:
    """Players of `method` on a tiny teacher saved under `folder`."""
    make = {
        "animatediff": tiny_animatediff, "modelscope": tiny_modelscope, "wan": tiny_wan, "cogvideox": tiny_cogvideox,
    }[family]  # fmt: skip
    teacher = folder / family
    if not teacher.exists():
        make(teacher)
    model = load_video_model(teacher)
    bases = Bases.load(method.bases, model.denoiser) if method.bases else None
    rng = torch.Generator().manual_seed(3)
    discriminator: FrameDiscriminator | EncoderDiscriminator | None = None
    if method.judge == "encoder":
        discriminator = EncoderDiscriminator.of(
            model.denoiser, torch.Generator().manual_seed(5), 1 if bases is None else len(bases)
        )
    averaged = method.target_decay is not None
    if kind == "lora":
        student: Student = Student.lora(model.denoiser, rank=4, alpha=4, averaged=averaged, rng=rng)
    else:
        student = Student.full(model.denoiser, averaged)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        motion = motion_representation(method.motion, model.codec.channels)
    if method.adversary != "none":
        backbone = folder / "dinov2"
        if not backbone.exists():
            tiny_dinov2(backbone)
        discriminator = FrameDiscriminator(FrozenFeatures.load(backbone), model.text.width, head_width=8, rng=rng)
    return Players(model, student, motion, copy.deepcopy(motion).requires_grad_(False), discriminator, bases)


def make_batch(players: Players, index: list[int] | None = None, real: bool = True) -> Batch:
    """Random latents, four captions in turn, random real frames; a function of the numbers in `index` alone."""
    index = [0, 1] if index is None else index
    step = players.model.codec.frame_step
    shape = players.model.latent_shape(FRAMES if step == 1 else step + 1)
    z0 = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(100 + i)) for i in index])
    text = players.model.text([CAPTIONS[i % 4] for i in index])
    empty = players.model.text([""])
    if not real:
        return Batch(z0, text, empty)
    size = players.model.size
    frames = torch.stack(
        [torch.rand(3, *size, generator=torch.Generator().manual_seed(200 + i)) * 2 - 1 for i in index for _ in "ab"]
    )
    captions = [CAPTIONS[(i + 1) % 4] for i in index for _ in "ab"]
    return Batch(z0, text, empty, frames, players.model.text(captions).pooled)


class Order:
    """A stream of the same two clips."""

    def next_batch(self) -> list[int]:
        return [0, 1]

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


def staged_trainer(players: Players, chosen: Method, folder: Path, updates: int) -> Trainer:
    """A trainer of a method in stages, each player in its span, at a constant high rate; nothing is saved."""
    optimizers, schedules = {}, {}
    for player in chosen.order:
        begin, end = (round(share * updates) for share in chosen.span(player))
        optimizers[player] = torch.optim.AdamW(list(players.parameters(player).values()), lr=1e-2)
        schedules[player] = Schedule(1e-2, 0, end - begin, "constant", begin)
    return Trainer(
        chosen, players, lambda index, rng, base: make_batch(players, index, real=False), Order(),  # pyright: ignore[reportArgumentType]
        optimizers, schedules, Plan(updates), folder, lambda update, numbers: None,
    )  # fmt: skip


def copied(weights: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in weights.items()}
