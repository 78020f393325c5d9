"""What a run will cost, from configurations alone: parameters, memory, FLOPs, time, and the settings that fit.

No weight is read. Networks are built on torch's meta device, and one training step is made of the method's own pieces
over fake tensors, which have shapes and a device but no content: the operators are those that a CPU would run, fused
attention and autocast among them. Memory is what those operators' outputs hold, freed when the step frees it.
"""

from __future__ import annotations

import copy
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mcm.errors import UserError, one_of
from mcm.methods.base import Players
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.features import FrozenFeatures
from mcm.models.folders import find_folder
from mcm.models.student import Student, checkpoint
from mcm.models.video import VideoModel, load_video_model
from mcm.motion import motion_representation
from mcm.output import flat
from mcm.recipe import RECIPE_FILE, DataConfig, Recipe, apply_overrides
from mcm.recipes import load_recipe, recipes
from mcm.settings import settings
from mcm.training.meter import Step, measure_step, tensors

GB = 10**9
UTILISATION = 0.35  # share of a card's peak that training of such networks reaches; an assumption
RESERVE = 0.08  # of the memory: the device's context and what the allocator leaves between blocks; an assumption


class Card(NamedTuple):
    """A graphics card: memory in GB (10^9 bytes), peak dense TFLOPS as its maker states them."""

    memory: float
    bf16: float
    fp32: float


CARDS = {
    "h200": Card(141, 989, 67),
    "h100": Card(80, 989, 67),  # SXM
    "a100": Card(80, 312, 19.5),
    "a100-40gb": Card(40, 312, 19.5),
    "l40s": Card(48, 362, 91.6),
    "a6000": Card(48, 154.8, 38.7),  # RTX A6000, Ampere
    "4090": Card(24, 165.2, 82.6),
    "3090": Card(24, 71, 35.6),
    "l4": Card(24, 121, 30.3),
}


@dataclass
class Plan:
    """See `plan`. Everything in bytes, FLOPs and seconds; networks: parameters by name."""

    recipe: str
    teacher: str
    family: str
    method: str
    frames: int
    size: tuple[int, int]
    precision: str
    batch: int
    accumulation: int
    networks: dict[str, int]
    trained: dict[str, int]
    memory: dict[str, int]
    step: Step
    checkpointed: Step | None
    flops_update: float
    card: str | None = None
    seconds_update: float | None = None
    available: int | None = None
    fits: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def plan(
    what: str | Recipe,
    memory: str | None = None,
    card: str | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> Plan:
    """What the run of a recipe costs, or with a teacher's name or folder that of the default recipe for it.

    memory: text as "24GB" or "40GiB"; without it the card's. card: one of `CARDS`. With either, the settings that fit
    are sought. frames, size (H, W): in the place of the recipe's.

    Raises:
        UserError: for an unknown card or memory, a model whose configuration is not on this machine, or a geometry that
            the teacher cannot make.
    """
    if card is not None and card not in CARDS:
        raise one_of("card", card, CARDS)
    available = _bytes(memory) if memory is not None else int(CARDS[card].memory * GB) if card else None
    recipe, notes = _recipe(what)
    data = {name: value for name, value in (("data.frames", frames), ("data.size", size)) if value is not None}
    recipe = apply_overrides(recipe, data)
    bench = _Bench(recipe, notes, strict=isinstance(what, Recipe) or not notes)
    training = recipe.training
    step = bench.step(recipe.student.kind, training.precision, training.batch)
    checkpointed = bench.step(recipe.student.kind, training.precision, training.batch, checkpointing=True)
    if checkpointed is None:
        notes.append("gradient checkpointing: the teacher's network does not support it")
    notes.append("gradient checkpointing has no setting in a recipe yet: its numbers are for comparison")
    networks, trained = bench.parameters(recipe.student.kind)
    found = Plan(
        recipe=recipe.name, teacher=recipe.teacher, family=bench.model.family, method=recipe.method.name,
        frames=bench.frames, size=bench.size, precision=training.precision, batch=training.batch,
        accumulation=training.accumulation, networks=networks, trained=trained,
        memory=bench.memory(recipe.student.kind, step), step=step, checkpointed=checkpointed,
        flops_update=step.flops * training.accumulation, available=available, notes=notes,
    )  # fmt: skip
    if card is not None:
        found.card = card
        found.seconds_update = _seconds(found.flops_update, card, training.precision)
        notes.append(f"time: {UTILISATION:.0%} of the card's peak in {training.precision} assumed")
    if available is not None:
        found.fits = _fitting(bench, available, card)
        notes.append(f"fits: {RESERVE:.0%} of the memory left to the device's context and allocator")
        if not found.fits:
            notes.append("nothing tried fits: fewer frames or a smaller size (data.frames, data.size) need less")
    return found


def _recipe(what: str | Recipe) -> tuple[Recipe, list[str]]:
    """The recipe, or the default one for a teacher with a note that says so."""
    if isinstance(what, Recipe):
        return what, []
    path = Path(what).expanduser()
    if path.suffix in (".yaml", ".yml", ".json") or (path / RECIPE_FILE).is_file() or what in recipes():
        return load_recipe(what), []
    default = Recipe(teacher=what, data=DataConfig(videos="videos"))
    return default, ["a teacher was named: everything else is the default of a recipe"]


def _bytes(text: str) -> int:
    """ "24GB" (10^9) and "24GiB" (2^30) to bytes; UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", text.strip(), flags=re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise UserError(f"memory {text!r}: expected a size such as 24GB (10^9 bytes each) or 40GiB (2^30)")
    power = "KMGT".index(match[2].upper()) + 1
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _local(name: str, what: str) -> Path:
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


def _seconds(flops: int, card: str, precision: str) -> float:
    peak = CARDS[card].bf16 if precision == "bf16" else CARDS[card].fp32
    return flops / (peak * 1e12 * UTILISATION)


def count(*modules: nn.Module | None) -> int:
    """Parameters of the modules together."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def held(*modules: nn.Module | None) -> int:
    """Bytes of their parameters and buffers."""
    tensors = (t for m in modules if m is not None for t in (*m.parameters(), *m.buffers()))
    return sum(t.numel() * t.element_size() for t in tensors)


class _Bench:
    """The networks of a recipe in shapes alone, and the steps measured on them."""

    def __init__(self, recipe: Recipe, notes: list[str], strict: bool) -> None:
        self.recipe, self.method = recipe, recipe.method.build()
        self.shapes = FakeTensorMode(allow_non_fake_inputs=True)
        self.folder = _local(recipe.teacher, "teacher")
        self.features: FrozenFeatures | None = None
        if self.method.adversary != "none":
            try:
                backbone = _local(recipe.discriminator.backbone, "backbone")
            except UserError as error:
                if strict:
                    raise
                notes.append(f"discriminator left out: {error}")
            else:
                with torch.device("meta"):
                    self.features = FrozenFeatures.load(backbone)
        if self.method.name not in ("mcm", "lcm"):
            notes.append(f"activations, FLOPs and time are those of a step of mcm, not of {self.method.name}")
        self.model = self._model()
        self.method.check(self.model)
        self.frames = recipe.data.frames or self.model.frames
        self.size = recipe.data.size or self.model.size
        self.shape = self.model.latent_shape(self.frames, self.size)
        self._steps: dict[tuple[Any, ...], Step] = {}
        self._players: dict[str, Players] = {}

    def _model(self) -> VideoModel:
        with torch.device("meta"):
            return load_video_model(self.folder, "meta")

    def players(self, kind: str) -> Players:
        """Who takes part, over fake tensors; kind: of the student."""
        if kind not in self._players:
            self._players[kind] = self._new(kind)
        return self._players[kind]

    def _new(self, kind: str) -> Players:
        recipe, method = self.recipe, self.method
        model = self._model()
        averaged = method.target_decay is not None
        with torch.device("meta"):
            if kind == "lora":
                s = recipe.student
                student: Student = Student.lora(model.denoiser, s.rank, s.alpha, s.targets, averaged)
            else:
                student = Student.full(model.denoiser, averaged)
            motion = motion_representation(method.motion, model.codec.channels)
            discriminator = None
            if self.features is not None:
                width = recipe.discriminator.head_width
                discriminator = FrameDiscriminator(self.features, model.text.width, width, augment=0)
        players = Players(model, student, motion, copy.deepcopy(motion).requires_grad_(False), discriminator)
        return fake(players, self.shapes)

    def parameters(self, kind: str) -> tuple[dict[str, int], dict[str, int]]:
        """(parameters of every network, those that are trained by player)."""
        players, model = self.players(kind), self.model
        networks = {"denoiser": count(model.denoiser), "codec": count(model.codec), "text encoder": count(model.text)}
        trained = {"student": sum(p.numel() for p in players.student.trainable().values())}
        networks["LoRA adapters" if kind == "lora" else "student's copy"] = trained["student"]
        if averages := players.student.averages():
            networks["averaged target"] = sum(p.numel() for p in averages.values())
        if count(players.motion):
            networks["motion head"] = trained["motion head"] = count(players.motion)
        if isinstance(players.discriminator, FrameDiscriminator):
            heads = sum(p.numel() for p in players.discriminator.trainable().values())
            networks["discriminator backbone"] = count(players.discriminator.features)
            networks["discriminator heads"] = trained["discriminator heads"] = heads
        return networks, trained

    def memory(self, kind: str, step: Step, rank: int | None = None) -> dict[str, int]:
        """Bytes by what holds them, and the peak. rank: of the adapters, where it is not the recipe's."""
        players, model = self.players(kind), self.model
        share = (rank or self.recipe.student.rank) / self.recipe.student.rank if kind == "lora" else 1.0
        own = round(4 * share * sum(p.numel() for p in players.student.trainable().values()))
        extra = held(players.motion, players.discriminator)
        others = 4 * sum(w.numel() for w in _trained(players)) - round(own / share)
        averaged = held(players.averaged_motion) + (own if players.student.averages() else 0)
        parts = {
            "weights": held(model.denoiser, model.codec, model.text) + own + extra,
            "averaged copies": averaged,
            "gradients": own + others,
            "AdamW": 2 * (own + others),
        }
        # AdamW over lists of tensors makes a temporary of the size of the weights, when the step's are gone.
        parts["activations and temporaries"] = max(step.peak, own + others)
        return {**parts, "peak": sum(parts.values())}

    def step(self, kind: str, precision: str, batch: int, checkpointing: bool = False) -> Any:
        """The `Step`, from measurements of one and two clips where there are more; None: no checkpointing there."""
        if batch > 2:
            one, two = (self.step(kind, precision, b, checkpointing) for b in (1, 2))
            if one is None:
                return None
            return _extrapolated(one, two, batch)
        key = (kind, precision, batch, checkpointing)
        if key not in self._steps:
            with ExitStack() as stack:
                if checkpointing:
                    network: Any = self.players(kind).student.denoisers()[0].network
                    if not getattr(network, "_supports_gradient_checkpointing", False):
                        return None
                    checkpoint(network)
                    stack.callback(_no_checkpoints, network)
                players = self.players(kind)
                self._steps[key] = measure_step(self.method, players, self.shapes, self.shape, precision, batch)
        return self._steps[key]


def _no_checkpoints(network: nn.Module) -> None:
    for module in network.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False  # pyright: ignore[reportAttributeAccessIssue]


def _trained(players: Players) -> list[nn.Parameter]:
    judge = ["discriminator"] if players.discriminator is not None else []
    return [weight for player in ("student", *judge) for weight in players.parameters(player).values()]


def _extrapolated(one: Step, two: Step, batch: int) -> Step:
    """From the steps of one and of two clips, that of more: every number grows by the same for each clip."""

    def grown(a: int, b: int) -> int:
        return a + (batch - 1) * (b - a)

    names = ("saved", "decoder", "peak", "forward", "flops")
    numbers = {name: grown(getattr(one, name), getattr(two, name)) for name in names}
    return Step(batch, **numbers, parts={name: grown(n, two.parts[name]) for name, n in one.parts.items()})


def _fitting(bench: _Bench, available: int, card: str | None) -> list[dict[str, Any]]:
    """The settings that fit, best first, by what they cost in quality and then in time.

    An update keeps its number of clips. Adapters of the recipe's rank come before smaller ones, the recipe's kind of
    student before the other, its precision before the other, larger batches before smaller.
    """
    student, training = bench.recipe.student, bench.recipe.training
    room = available * (1 - RESERVE)
    clips = training.batch * training.accumulation
    found = []
    for kind in ("lora", "full"):
        if kind == "full" and not hasattr(bench.model.denoiser.network, "save_config"):
            continue  # several networks: see FullStudent
        ranks = [r for r in (student.rank, student.rank // 2, student.rank // 4) if r] if kind == "lora" else [None]
        for precision in ("bf16", "fp32"):
            for batch in (b for b in (1, 2, 4, 8, 16, 32, 64, 128) if clips % b == 0):
                step = bench.step(kind, precision, batch)
                for rank in ranks:
                    peak = bench.memory(kind, step, rank)["peak"]
                    if peak > room:
                        continue
                    accumulation = clips // batch
                    wanted: dict[str, Any] = {
                        "student.kind": kind, "student.rank": rank, "training.precision": precision,
                        "training.batch": batch, "training.accumulation": accumulation,
                    }  # fmt: skip
                    if rank is not None and rank != student.rank:  # alpha / rank stays
                        wanted["student.alpha"] = student.alpha * rank / student.rank
                    wanted = {name: value for name, value in wanted.items() if value is not None}
                    flops = step.flops * accumulation
                    order = (kind != student.kind, -(rank or 0), precision != training.precision, -batch)
                    found.append((order, {
                        "settings": wanted,
                        "overrides": _overrides(bench.recipe, wanted),
                        "peak": peak,
                        "seconds_update": None if card is None else _seconds(flops, card, precision),
                    }))  # fmt: skip
    return [entry for _, entry in sorted(found, key=lambda one: one[0])]


def _overrides(recipe: Recipe, wanted: dict[str, Any]) -> str:
    """What of the wanted settings is not the recipe's already, as options of `mcm distill`."""
    names = {name for name, _ in settings(Recipe)}
    own = flat(recipe.model_dump())
    unknown = set(wanted) - names
    if unknown:
        raise ValueError(f"no settings of a recipe: {sorted(unknown)}")
    return " ".join(f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}"
                    for name, value in wanted.items() if own[name] != value)  # fmt: skip


def fake(players: Players, shapes: FakeTensorMode) -> Players:
    """A copy of players on the meta device over fake tensors of the CPU, with gradients for what is trained."""
    networks = [*players.student.denoisers(), players.model.denoiser, players.model.codec, players.model.text]
    networks += [m for m in (players.motion, players.averaged_motion, players.discriminator) if m is not None]
    instead: dict[int, Any] = {}  # deepcopy's memo: every holder of a tensor gets the same new one
    with shapes:
        for old in tensors(*networks):
            new = torch.empty_like(old, device="cpu")
            learns = old.requires_grad
            instead[id(old)] = nn.Parameter(new, learns) if isinstance(old, nn.Parameter) else new
    copied = copy.deepcopy(players, instead)  # outside: the tables of the noise path keep their numbers
    with shapes:
        for weight in _trained(copied):
            weight.grad = torch.zeros_like(weight)
    return copied
