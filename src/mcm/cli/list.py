"""`mcm list`: everything that goes by a name."""

from __future__ import annotations

import inspect
import sys
from json import loads
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from mcm.cli.terminal import show, tell

app = App(name="list", help_epilogue="Example: mcm list --json", help_format="plaintext")


@app.default
def names(
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="print the names as JSON")] = False,
) -> None:
    """Name the teachers, students, recipes, bases, methods, samplers and motion representations."""
    found = catalogue()
    if json:
        tell(found)
        return
    for kind, entries in found.items():
        show(kind, (), list(entries.items()) or [("none", "")])


def catalogue() -> dict[str, dict[str, str]]:
    """{kind: {name: one line about it}}. Students are the zoo's and those under runs/."""
    from mcm.methods import methods
    from mcm.motion import MotionRepresentation
    from mcm.pocket import zoo
    from mcm.recipes import recipes
    from mcm.samplers import samplers

    return {
        "teachers": {name: _pipeline(zoo.find(name)) for name in zoo.teachers()},
        "students": _students(),
        "recipes": recipes(),
        "bases": {name: f"a look for pocket-animatediff: {style}" for style, name in zoo.LOOKS.items()},
        "methods": {name: _summary(sys.modules[kind.__module__]) for name, kind in sorted(methods().items())},
        "samplers": {name: _summary(kind) for name, kind in sorted(samplers().items())},
        "motion representations": {kind.name: _summary(kind) for kind in _named(MotionRepresentation)},
    }


def _students() -> dict[str, str]:
    """The shipped ones by name, and those that were distilled from here by their folders."""
    from mcm.card import CARD, StudentCard
    from mcm.pocket import zoo

    places = {name: zoo.find(name) for name in zoo.students()}
    own = [*Path("runs").glob(f"*/{CARD}"), *Path("runs").glob(f"*/student/{CARD}")]
    places.update((str(path.parent), path) for path in sorted(own))
    cards = {name: StudentCard.load(place) for name, place in places.items() if place is not None}
    return {name: f"{card.method} on {card.teacher.name}" for name, card in cards.items()}


def _pipeline(folder: Path | None) -> str:
    """The diffusers pipeline that a teacher's folder was saved from."""
    if folder is None:
        return ""
    return loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name", "")


def _named(base: type) -> list[type]:
    kinds = []
    for kind in base.__subclasses__():
        kinds += [kind] * ("name" in vars(kind)) + _named(kind)
    return kinds


def _summary(kind: object) -> str:
    """The first line of what is said about it."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]
