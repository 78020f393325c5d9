"""The networks of a recipe in shapes alone, what they hold, and the steps measured on them."""

from __future__ import annotations

import copy
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcm.errors import UserError
from mcm.methods.base import Players
from mcm.models.bases import Bases
from mcm.models.checkpointing import can_checkpoint, checkpoint, uncheckpoint
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.features import FrozenFeatures
from mcm.models.folders import find_folder
from mcm.models.joined import joined
from mcm.models.student import Student
from mcm.models.video import VideoModel, load_video_model
from mcm.motion import motion_representation
from mcm.planning.shapes import recomputing
from mcm.planning.step import HALF, Step, measure_step
from mcm.recipe import Recipe

STATES = {"adamw": 8, "adamw-fused": 8, "adamw-8bit": 2}  # bytes of the optimizer's state a trained number


def local(name: str, what: str) -> Path:
    """The folder of a model that is on this machine: nothing is downloaded. UserError says what to put where."""
    from huggingface_hub import snapshot_download

    if Path(name).expanduser().exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return find_folder(name, what)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{what} {name}: not in Hugging Face's cache on this machine; its configuration is enough: run "
            f'`hf download {name} --include "*.json" "*.txt" "spiece.model"`, or give the path of a folder of it'
        ) from error


def count(*modules: nn.Module | None) -> int:
    """Parameters of the modules together."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def held(*modules: nn.Module | None) -> int:
    """Bytes of their parameters and buffers."""
    found = (t for m in modules if m is not None for t in (*m.parameters(), *m.buffers()))
    return sum(t.numel() * t.element_size() for t in found)


class Networks:
    """Everything that a run of a recipe holds, on torch's meta device; a step of a kind and precision is measured once.

    notes: gets a line for what had to be left out. strict: a backbone that is not on this machine is an error; else
    the plan is made without the discriminator.
    """

    def __init__(self, recipe: Recipe, notes: list[str], strict: bool) -> None:
        self.recipe, self.method = recipe, recipe.method.build()
        pair = joined(recipe.teacher, lambda name, what, parts: local(name, what))
        self.folder = pair or local(recipe.teacher, "teacher")
        self.features: FrozenFeatures | None = None
        if self.method.adversary != "none":
            self.features = self._backbone(notes, strict)
        self.model = self._model()
        self._untouched: VideoModel | None = self.model  # a student changes it
        self._own = {"denoiser": count(self.model.denoiser), "codec": count(self.model.codec)}
        self._own["text encoder"] = count(self.model.text)
        self._weights = held(self.model.denoiser, self.model.codec, self.model.text)
        self._checkpoints = can_checkpoint(self.model.denoiser.network)
        self.method.check(self.model)
        self.bases = self._bases()
        self.frames = recipe.data.frames or self.model.frames
        self.size = recipe.data.size or self.model.size
        self.shape = self.model.latent_shape(self.frames, self.size)
        self._players: dict[str, Players] = {}
        self._results: dict[Any, Any] = {}  # shared by the steps: most of their operators are alike
        self._steps: dict[tuple[str, str, bool], Step] = {}

    def _backbone(self, notes: list[str], strict: bool) -> FrozenFeatures | None:
        try:
            folder = local(self.recipe.discriminator.backbone, "backbone")
        except UserError as error:
            if strict:
                raise
            notes.append(f"planned without the discriminator: {error}")
            self.method = type(self.method)(**{**self.recipe.method.model_dump(exclude={"name"}), "adversary": "none"})
            return None
        with torch.device("meta"):
            return FrozenFeatures.load(folder)

    def _model(self) -> VideoModel:
        with torch.device("meta"):
            return load_video_model(self.folder, "meta")

    def _bases(self) -> Bases | None:
        if not self.method.bases:
            return None
        with torch.device("meta"):
            return Bases.load(self.method.bases, self.model.denoiser, lambda name, what, parts: local(name, what))

    def players(self, kind: str) -> Players:
        """Who takes part with such a student, with gradients for what is trained."""
        if kind not in self._players:
            self._players[kind] = self._new(kind)
        return self._players[kind]

    def _new(self, kind: str) -> Players:
        """As `mcm.training.players.make_players`, but nothing is drawn."""
        recipe, method, model = self.recipe, self.method, self._untouched or self._model()
        self._untouched = None
        discriminator: Any = None
        if method.judge == "encoder":
            many = 1 if self.bases is None else len(self.bases)
            discriminator = EncoderDiscriminator.of(model.denoiser, torch.Generator(), many)
        with torch.device("meta"):
            averaged = method.target_decay is not None
            if kind == "lora":
                s = recipe.student
                student: Student = Student.lora(model.denoiser, s.rank, s.alpha, s.targets, averaged)
            else:
                student = Student.full(model.denoiser, averaged)
            motion = motion_representation(method.motion, model.codec.channels)
            if self.features is not None:
                settings = recipe.discriminator
                discriminator = FrameDiscriminator(
                    self.features, model.text.width, settings.head_width, augment=settings.augmentation,
                    policy=settings.augmentation_policy,
                )
        players = Players(model, student, motion, copy.deepcopy(motion).requires_grad_(False), discriminator)
        for weight in self._trained(players):
            weight.grad = torch.zeros_like(weight)
        return players

    def _trained(self, players: Players) -> list[nn.Parameter]:
        found = {id(p): p for player in self.method.order for p in players.parameters(player).values()}
        return list(found.values())

    def parameters(self, kind: str) -> tuple[dict[str, int], dict[str, int]]:
        """(parameters of every network, those of them that are trained)."""
        players, networks = self.players(kind), dict(self._own)
        learns = {id(p) for p in self._trained(players)}
        adapters = sum(p.numel() for p in players.student.trainable().values())
        trained = {"student": sum(p.numel() for p in players.student.trainable().values() if id(p) in learns)}
        networks["LoRA adapters" if kind == "lora" else "student's copy"] = adapters
        if averages := players.student.averages():
            networks["averaged target"] = sum(p.numel() for p in averages.values())
        if count(players.motion):
            networks["motion head"] = trained["motion head"] = count(players.motion)
        judge = players.discriminator
        if isinstance(judge, FrameDiscriminator):
            heads = sum(p.numel() for p in judge.trainable().values())
            networks["discriminator backbone"] = count(judge.features)
            networks["discriminator heads"] = trained["discriminator heads"] = heads
        elif judge is not None:
            networks["discriminator (encoder)"] = trained["discriminator (encoder)"] = count(judge)
        return networks, trained

    def memory(self, kind: str, step: Step | None, rank: int | None = None, ranks: int = 1) -> dict[str, int]:
        """Bytes by what holds them, and the peak, on one card. step: None for what is there between steps alone.

        rank: of the adapters, where it is not the recipe's. ranks: cards among which a full student's weights,
        gradients and optimizer are divided (FSDP2); the teacher and the discriminator are whole on each.
        """
        players = self.players(kind)
        share = (rank or self.recipe.student.rank) / self.recipe.student.rank if kind == "lora" else 1.0
        divided = share / (ranks if kind == "full" else 1)
        student = 4 * sum(p.numel() for p in players.student.trainable().values())
        learns = {id(p) for p in self._trained(players)}
        learning = 4 * sum(p.numel() for p in players.student.trainable().values() if id(p) in learns)
        others = 4 * sum(p.numel() for p in self._trained(players)) - learning
        copies = bool(players.student.averages()) + (self.recipe.training.average is not None)
        averaged = held(players.averaged_motion) + copies * divided * student
        gradients = divided * learning + others
        parts: dict[str, float] = {
            "weights": self._weights + held(players.motion, players.discriminator) + divided * student,
            "averaged copies": averaged,
            "gradients": gradients,
            "optimizer": gradients * STATES[self.recipe.optim.name] / 4,
        }
        # AdamW over lists of tensors makes a temporary of the size of the weights, when the step's are gone.
        temporary = gradients if self.recipe.optim.name == "adamw" else 0
        # for an update every rank gathers all weights, and sums whole gradients until its last backward pass
        whole = student + learning - divided * learning if kind == "full" and ranks > 1 else 0
        if whole:
            parts["weights and gradients of all ranks"] = whole
        if self.bases is not None:
            parts["bases"] = self.bases.held()
        if step is not None:
            parts["activations and temporaries"] = max(step.peak, temporary)
        rounded = {name: round(size) for name, size in parts.items()}
        return {**rounded, "peak": sum(rounded.values())}

    def can_checkpoint(self) -> bool:
        """Whether this network's activations can be computed again in the backward pass."""
        return self._checkpoints

    def step(self, kind: str, precision: str, batch: int, checkpointing: bool = False) -> Step:
        """The step of so many clips; it is measured for the recipe's batch, and others follow from that (`Step.of`)."""
        key = (kind, "half" if precision in HALF else precision, checkpointing)
        if key not in self._steps:
            players = self.players(kind)
            with ExitStack() as stack:
                if checkpointing:
                    own = players.student.denoisers()[0].network
                    for network in (own, *players.model.codec.recomputable()):
                        checkpoint(network, recomputing(HALF.get(precision)))
                        stack.callback(uncheckpoint, network)
                batch_of_recipe = self.recipe.training.batch
                self._steps[key] = measure_step(
                    self.method, players, self.shape, precision, batch_of_recipe, self._results
                )
        return self._steps[key].of(batch)

    def least(self) -> tuple[int, int]:
        """Of the steps that were measured, with one clip: (bytes between steps, peak) where the peak is smallest."""
        found = [
            (self.memory(kind, None)["peak"], self.memory(kind, step.of(1))["peak"])
            for (kind, _, _), step in self._steps.items()
        ]
        return min(found, key=lambda one: one[1])
