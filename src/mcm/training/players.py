"""From a recipe to what the trainer needs: players, optimizers, schedules, plan."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from mcm.methods.base import Method, Players
from mcm.models.bases import Bases
from mcm.models.checkpointing import checkpoint
from mcm.models.compiling import compile_network
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.features import FrozenFeatures
from mcm.models.student import Student
from mcm.models.video import VideoModel
from mcm.motion import motion_representation
from mcm.recipe import Recipe
from mcm.training.optimizers import make_optimizer
from mcm.training.schedule import Plan, Schedule


def make_players(
    recipe: Recipe, model: VideoModel, method: Method, start: Path | None, bases: Bases | None = None
) -> Players:
    """The players on this teacher, their weights drawn from the seed; start: a student's folder to begin from."""
    rng = torch.Generator().manual_seed(recipe.training.seed)
    discriminator: FrameDiscriminator | EncoderDiscriminator | None = None
    if method.judge == "encoder":  # of the bare teacher, before there are adapters in it
        discriminator = EncoderDiscriminator.of(model.denoiser, rng, 1 if bases is None else len(bases))
    averaged = method.target_decay is not None
    if recipe.student.kind == "lora":
        student: Student = Student.lora(
            model.denoiser, recipe.student.rank, recipe.student.alpha, recipe.student.targets, averaged,
            recipe.training.gradient_checkpointing, rng,
        )  # fmt: skip
    else:
        student = Student.full(model.denoiser, averaged, recipe.training.gradient_checkpointing)
    if recipe.training.gradient_checkpointing:
        for network in model.codec.recomputable():
            checkpoint(network)
    if start is not None:
        student.begin(start)
    if recipe.training.compile:  # last: what is compiled keeps no replaced layer
        for denoiser in student.denoisers():
            compile_network(denoiser.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        motion = motion_representation(method.motion, model.codec.channels)
    motion.to(next(model.denoiser.parameters()).device)
    if method.adversary != "none":
        features = FrozenFeatures.load(recipe.discriminator.backbone)
        discriminator = FrameDiscriminator(
            features,
            model.text.width,
            recipe.discriminator.head_width,
            augment=recipe.discriminator.augmentation,
            policy=recipe.discriminator.augmentation_policy,
            rng=rng,
        ).to(next(model.denoiser.parameters()).device)
    return Players(model, student, motion, copy.deepcopy(motion).requires_grad_(False), discriminator, bases)


def make_optimizers(
    recipe: Recipe, method: Method, players: Players, sharded: bool
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, Schedule]]:
    """An optimizer and a schedule for each player; sharded: whether the student is divided among ranks."""
    optim, updates = recipe.optim, recipe.training.updates
    optimizers: dict[str, torch.optim.Optimizer] = {}
    schedules: dict[str, Schedule] = {}
    for player in method.order:
        weights = list(players.parameters(player).values())
        rate = optim.discriminator_lr if player == "discriminator" else optim.lr
        optimizers[player] = make_optimizer(optim, weights, rate, sharded and player != "discriminator")
        begin, end = (round(share * updates) for share in method.span(player))
        anew = tuple(first for share in method.stages if begin < (first := round(share * updates)) < end)
        schedules[player] = Schedule(rate, optim.warmup, end - begin, optim.schedule, begin, anew)
    return optimizers, schedules


def make_plan(recipe: Recipe, device: torch.device) -> Plan:
    """The recipe's plan on this device."""
    t = recipe.training
    return Plan(
        t.updates, t.accumulation, recipe.optim.clip, t.seed, t.save_every, t.keep, t.log_every, t.precision, device
    )  # fmt: skip
