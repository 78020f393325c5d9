"""The search for the settings that a memory has room for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mcm.output import flat
from mcm.planning.cards import Card, seconds, takes
from mcm.planning.meter import Work
from mcm.planning.networks import Networks
from mcm.planning.step import HALF
from mcm.recipe import Recipe

RESERVE = 0.08  # of the memory: the device's context and what the allocator leaves between blocks; an assumption
CARDS_TOGETHER = (1, 2, 4, 8)  # among which a full student is divided


@dataclass
class Fit:
    """Settings that fit: by their names in a recipe, as options of `mcm distill`, on so many cards; the peak in bytes
    on each; work and seconds (None without a card) of an update; and why they are here."""

    settings: dict[str, Any]
    overrides: str
    cards: int
    peak: int
    work: Work
    seconds: float | None
    why: str


@dataclass(frozen=True)
class _Variant:
    """All but the batch. rank: of adapters, None for a full student."""

    kind: str
    rank: int | None
    cards: int
    precision: str
    checkpointing: bool


def fitting(networks: Networks, available: int, card: Card | None) -> list[Fit]:
    """The settings that fit into so many bytes on each card, the fastest first (without a card: the fewest FLOPs).

    An update keeps its number of clips. Of equally fast ones those come first that change the recipe least. Smaller
    adapters, more cards and checkpointing are tried only where it does not go without; adapters in the place of a full
    student always are. What is too large already without a step is not measured.
    """
    room = int(available * (1 - RESERVE))
    found: list[Fit] = []
    for variants in _alternatives(networks, card):
        for variant in variants:  # the first that fits is enough
            fits = _of(networks, variant, room, card)
            found += fits
            if fits:
                break
    return sorted(found, key=lambda fit: (fit.seconds or fit.work.flops, len(fit.overrides.split()), fit.cards))


def _alternatives(networks: Networks, card: Card | None) -> Iterator[list[_Variant]]:
    """For each kind of student and precision the variants, from what costs least to what saves most."""
    student, training = networks.recipe.student, networks.recipe.training
    half = training.precision if training.precision in HALF else "bf16"
    if card is not None and not takes(card, half):
        half = "fp16"
    whole = networks.recipe.optim.name == "adamw-8bit" or networks.bases is not None
    checkpointing = [training.gradient_checkpointing]
    if networks.can_checkpoint() and not training.gradient_checkpointing:
        checkpointing.append(True)
    for kind in dict.fromkeys((student.kind, "lora")):
        smaller: list[tuple[int | None, int]] = [(None, cards) for cards in CARDS_TOGETHER]
        if kind == "lora":
            smaller = [
                (rank, 1) for rank in dict.fromkeys((student.rank, student.rank // 2, student.rank // 4)) if rank
            ]
        for precision in ("fp32", half):
            yield [
                _Variant(kind, rank, cards, precision, again)
                for rank, cards in smaller
                for again in checkpointing
                if not (cards > 1 and (precision == "fp16" or whole))  # which a divided student does not take
            ]


def _of(networks: Networks, variant: _Variant, room: int, card: Card | None) -> list[Fit]:
    """The variant with the largest batch that fits, and with the recipe's own where that fits, too."""
    training = networks.recipe.training
    kind, rank, cards = variant.kind, variant.rank, variant.cards
    clips = training.batch * training.accumulation
    if clips % cards or networks.memory(kind, None, rank, cards)["peak"] > room:
        return []
    fits: list[Fit] = []
    for batch in (b for b in range(clips // cards, 0, -1) if clips // cards % b == 0):
        if fits and batch != training.batch:
            continue
        step = networks.step(kind, variant.precision, batch, variant.checkpointing)
        peak = networks.memory(kind, step, rank, cards)["peak"]
        if peak <= room:
            work = Work().plus(step.work, clips // cards // batch)
            fits.append(_fit(networks.recipe, variant, batch, clips // cards // batch, peak, work, card))
    return fits


def _fit(
    recipe: Recipe, variant: _Variant, batch: int, accumulation: int, peak: int, work: Work, card: Card | None
) -> Fit:
    student = recipe.student
    wanted: dict[str, Any] = {
        "student.kind": variant.kind, "training.precision": variant.precision, "training.batch": batch,
        "training.accumulation": accumulation, "training.gradient_checkpointing": variant.checkpointing,
    }  # fmt: skip
    if variant.rank is not None:
        wanted["student.rank"] = variant.rank
        wanted["student.alpha"] = student.alpha * variant.rank / student.rank  # alpha / rank stays
    own = flat(recipe.model_dump())
    changed = {name: value for name, value in wanted.items() if own[name] != value}
    time = None if card is None else seconds(work, card, variant.precision)
    why = _why(changed, variant, batch, accumulation)
    return Fit(wanted, " ".join(map(_option, changed.items())), variant.cards, peak, work, time, why)


def _option(setting: tuple[str, Any]) -> str:
    name, value = setting
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    return f"--{name} {text}"


def _why(changed: dict[str, Any], variant: _Variant, batch: int, accumulation: int) -> str:
    """What each change is for."""
    said = []
    if "student.kind" in changed:
        said.append("trains all weights" if variant.kind == "full" else "trains adapters alone")
    if variant.cards > 1:
        said.append(f"one card is too small for the whole optimizer: divided among {variant.cards} (torchrun)")
    if "student.rank" in changed:
        said.append(f"larger adapters do not fit: rank {variant.rank}")
    if "training.precision" in changed:
        said.append("exact" if variant.precision == "fp32" else "half precision is faster and smaller")
    if "training.gradient_checkpointing" in changed:
        said.append("activations do not fit: computed again, more FLOPs")
    if "training.batch" in changed:
        said.append(f"an update's clips in {accumulation} pass{'es' if accumulation > 1 else ''} of {batch}")
    return "; ".join(said) or "the recipe as it is"
