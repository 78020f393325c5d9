"""What a source found, what it uses, and what it leaves out and why: nothing is dropped silently."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


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
        counts = Counter(reason.split(":")[0].strip() for _, reason in self.dropped)
        return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())

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
