"""What the page offers: teachers and students, loaded once, by the names that people choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mcm.errors import UserError, one_of
from mcm.generate import Maker, load_maker
from mcm.output import Progress, silent


class Systems(Mapping[str, Maker]):
    """Makers by name, students first, each followed by its teacher; a teacher stands there once."""

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        self.makers = dict(makers)

    def __getitem__(self, name: str) -> Maker:
        if name not in self.makers:
            raise one_of("system", name, self.makers)
        return self.makers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)

    def is_teacher(self, name: str) -> bool:
        return self[name].card is None

    @property
    def teachers(self) -> list[str]:
        return [name for name in self if self.is_teacher(name)]

    @property
    def first(self) -> list[str]:
        """What is chosen when the page opens: the first system, and its teacher where it is a student."""
        names = list(self)
        return names[: 1 if self.is_teacher(names[0]) else 2]


def load_systems(places: Sequence[str], progress: Progress = silent) -> Systems:
    """Loads what `load_maker` takes, and the teachers of the students among them.

    Raises:
        UserError: where one cannot be loaded, or nothing is named.
    """
    if not places:
        raise UserError("nothing to show: name a student or a teacher")
    by_place: dict[str, Maker] = {}
    wanted = list(dict.fromkeys(places))
    for done, place in enumerate(wanted):
        progress("loading", done, len(wanted), place)
        if place in by_place:
            continue
        maker = by_place[place] = load_maker(place)
        if maker.card is not None and (teacher := maker.card.teacher.name) not in by_place:
            by_place[teacher] = load_maker(teacher)
    progress("loading", len(wanted), len(wanted))
    names: dict[str, Maker] = {}
    for place, maker in by_place.items():
        names[_free(_name(place), names)] = maker
    return Systems(names)


def _name(place: str) -> str:
    """A short name without the folders above it, which are nobody's business on a page."""
    path = Path(place)
    own = path.parent if path.name in ("student", "card.json") and path.parent.name else path
    own = own.parent if own.name == "student" and own.parent.name else own
    return own.name or "model"


def _free(name: str, taken: Mapping[str, Maker]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free
