"""What a run will cost, from configurations alone: parameters, memory, FLOPs, time, and the settings that fit.

No weight is read. Networks are built on torch's meta device, and a training step is the method's own code run over
tensors that have a shape and no content. Memory is what its operators' results hold until the step frees them.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mcm.errors import UserError
from mcm.planning.cards import BANDWIDTH, COMPUTE, GB, seconds, takes
from mcm.planning.cards import card as known_card
from mcm.planning.fit import RESERVE, Fit, fitting
from mcm.planning.networks import Networks
from mcm.planning.step import Step
from mcm.recipe import RECIPE_FILE, DataConfig, Recipe, apply_overrides
from mcm.recipes import load_recipe, recipes

__all__ = ["Plan", "plan"]


@dataclass
class Plan:
    """See `plan`. Everything in bytes, FLOPs and seconds; networks: parameters by name, trained: those of them that
    learn; memory: of the run on one card, by what holds it; step: of one forward and backward pass; fits: settings for
    `available` bytes, the fastest first."""

    recipe: str
    teacher: str
    family: str
    method: str
    frames: int
    size: tuple[int, int]
    kind: str
    precision: str
    batch: int
    accumulation: int
    networks: dict[str, int]
    trained: dict[str, int]
    memory: dict[str, int]
    step: Step
    flops_update: float
    card: str | None = None
    seconds_update: float | None = None
    available: int | None = None
    fits: list[Fit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        told = asdict(self)
        told["step"]["parts"] = {name: work._asdict() for name, work in self.step.parts.items()}
        for fit, own in zip(told["fits"], self.fits, strict=True):
            fit["work"] = own.work._asdict()
        return told


def plan(
    what: str | Recipe,
    memory: str | None = None,
    card: str | None = None,
    frames: int | None = None,
    size: tuple[int, int] | str | None = None,
) -> Plan:
    """What the run of a recipe costs, or with a teacher's name or folder that of the default recipe for it.

    memory: text as "24GB" or "40GiB"; without it the card's. card: one of `mcm.planning.cards.CARDS`. With either, the
    settings that fit are sought. frames, size (H, W), or text as "256x256": in the place of the recipe's. Parameters
    and the bytes of weights are exact; the peak is counted from shapes; the time is an estimate from FLOPs and bytes
    over an assumed share of the card's peaks, and was not measured on these cards.

    Raises:
        UserError: for an unknown card or memory, a model whose configuration is not on this machine, or a geometry that
            the teacher cannot make.
    """
    device = known_card(card) if card is not None else None
    available = parse_bytes(memory) if memory is not None else int(device.memory * GB) if device else None
    recipe, notes = _recipe(what)
    geometry = {name: value for name, value in (("data.frames", frames), ("data.size", size)) if value is not None}
    recipe = apply_overrides(recipe, geometry)
    networks = Networks(recipe, notes, strict=not notes)
    training, kind = recipe.training, recipe.student.kind
    step = networks.step(kind, training.precision, training.batch, training.gradient_checkpointing)
    counts, trained = networks.parameters(kind)
    found = Plan(
        recipe=recipe.name, teacher=recipe.teacher, family=networks.model.family, method=recipe.method.name,
        frames=networks.frames, size=networks.size, kind=kind, precision=training.precision, batch=training.batch,
        accumulation=training.accumulation, networks=counts, trained=trained, memory=networks.memory(kind, step),
        step=step, flops_update=step.work.flops * training.accumulation, available=available, notes=notes,
    )  # fmt: skip
    if not networks.can_checkpoint():
        notes.append("gradient checkpointing: this teacher's network has no blocks of layers to be computed again")
    if device is not None:
        found.card = card
        if takes(device, training.precision):
            found.seconds_update = seconds(step.work, device, training.precision) * training.accumulation
        else:
            notes.append(f"{training.precision}: the card's tensor cores do not have it; use fp16")
        notes.append(
            f"time: an estimate, not measured: {COMPUTE:.0%} of the card's FLOP/s and {BANDWIDTH:.0%} of its bandwidth"
        )
    if available is not None:
        found.fits = fitting(networks, available, device)
        notes.append(f"fits: {RESERVE:.0%} of the memory is left to the device's context and allocator")
        if not found.fits:
            notes.append(_too_small(networks, available))
    return found


def _too_small(networks: Networks, available: int) -> str:
    """How far from fitting it is."""
    standing, least = networks.least()
    return (
        f"nothing that was tried fits into {available / GB:.2f} GB: the least is {least / GB:.2f} GB with one clip a "
        f"pass, {standing / GB:.2f} GB of it weights, gradients and optimizer; fewer frames or a smaller size "
        "(data.frames, data.size) make activations smaller"
    )


def _recipe(what: str | Recipe) -> tuple[Recipe, list[str]]:
    """The recipe, or the default one for a teacher with a note that says so."""
    if isinstance(what, Recipe):
        return what, []
    path = Path(what).expanduser()
    if path.suffix in (".yaml", ".yml", ".json") or (path / RECIPE_FILE).is_file() or what in recipes():
        return load_recipe(what), []
    default = Recipe(teacher=what, data=DataConfig(videos="videos"))
    return default, ["a teacher was named: everything else is the default of a recipe"]


def parse_bytes(text: str) -> int:
    """ "24GB" (10^9) and "24GiB" (2^30) to bytes; UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", text.strip(), flags=re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise UserError(f"memory {text!r}: expected a size such as 24GB (10^9 bytes each) or 40GiB (2^30)")
    power = "KMGT".index(match[2].upper()) + 1
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
