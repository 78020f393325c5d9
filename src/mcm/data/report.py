"""What a source found, what it uses, and what it leaves out and why: nothing is dropped silently."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mcm.errors import UserError


class UnreadableError(Exception):
    """A file that cannot be used; `reason` says why, in words for a person. Its words up to the first colon
    are the kind of fault, by which faults are counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class SourceReport:
    """found = used + the number of dropped, always. dropped: (name, reason) each. what: "videos". where: the
    path.
    """

    found: int
    used: int
    dropped: list[tuple[str, str]] = field(default_factory=list)
    what: str = "files"
    where: str = ""

    def drop(self, name: str, reason: str) -> None:
        """Count one of the used as dropped."""
        self.dropped.append((name, reason))
        self.used -= 1

    def kinds(self) -> str:
        """ "9 no caption, 3 too short": the faults counted by kind, the most frequent first; empty if there
        are none.
        """
        return ", ".join(f"{count} {kind}" for kind, count in self.counts().items())

    def counts(self) -> dict[str, int]:
        """How often each kind of fault was met, the most frequent first."""
        return dict(Counter(reason.split(":")[0].strip() for _, reason in self.dropped).most_common())

    def nothing(self, expected: str) -> UserError:
        """The error where none can be used."""
        if not self.found:
            return UserError(f"{self.where}: no {self.what} in it; expected {expected}")
        first = "; ".join(self.lines()[:3])
        return UserError(
            f"{self.where}: {self.found} {self.what}, 0 usable: {self.kinds()}. "
            f"The first: {first}. Expected {expected}"
        )

    def summary(self) -> str:
        """One line: "clips/: 12 videos, 9 usable, 3 left out (2 no caption, 1 too short)"."""
        left_out = f", {len(self.dropped)} left out ({self.kinds()})" if self.dropped else ""
        return f"{self.where}: {self.found} {self.what}, {self.used} usable{left_out}"

    def lines(self) -> list[str]:
        """One line for each file that is left out: "a.mp4: too short: 0.9 s, 2.0 s needed (...)"."""
        return [f"{name}: {reason}" for name, reason in self.dropped]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "where": self.where,
            "what": self.what,
            "found": self.found,
            "used": self.used,
            "dropped": [{"name": name, "reason": reason} for name, reason in self.dropped],
        }
