"""A run's folder as it grows: losses, motion ratio, warnings and previews, read from the files that training writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcm.errors import UserError

MOTION = "motion ratio"
_NO_LOSSES = ("update", "seconds per update", MOTION, "warning", "words")
_POINTS = 1000  # of a curve, at most


@dataclass(frozen=True)
class Progress:
    """What stands in a run's folder. losses: {name: [(update, value)]}; motion: [(update, ratio)]; warnings: sentences
    with their updates; previews: the newest sheets, the newest first; mark: changes where anything does."""

    update: int = 0
    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    motion: list[tuple[int, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    previews: list[Path] = field(default_factory=list)
    mark: str = ""


class Run:
    """Follows one folder; a log that did not change is not read again.

    Raises:
        UserError: where there is no such folder. One without a log yet is a run that has not begun.
    """

    def __init__(self, folder: Path, previews: int = 6) -> None:
        if not folder.is_dir():
            raise UserError(f"--run {folder}: no such folder; expected one that `mcm distill` writes")
        self.folder, self.previews = folder, previews
        self._read = Progress()

    def progress(self) -> Progress:
        """What is there now. A line that training has not finished writing counts next time."""
        log = self.folder / "log.jsonl"
        sheets = sorted((self.folder / "previews").glob("update-*.png"), reverse=True)[: self.previews]
        stats = [path.stat() for path in (log, *sheets) if path.exists()]
        mark = " ".join(f"{stat.st_size}.{stat.st_mtime_ns}" for stat in stats)
        if mark != self._read.mark:
            lines = _lines(log.read_text(encoding="utf-8")) if log.exists() else []
            self._read = _progress(lines, sheets, mark)
        return self._read


def _lines(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # being written, or cut short by a kill
    return [line for line in found if isinstance(line, dict) and isinstance(line.get("update"), int)]


def _progress(lines: list[dict[str, Any]], sheets: list[Path], mark: str) -> Progress:
    losses: dict[str, list[tuple[int, float]]] = {}
    motion: list[tuple[int, float]] = []
    warnings = []
    for line in lines:
        if "warning" in line:
            warnings.append(f"update {line['update']}, {line['warning']}: {line.get('words', '')}")
        if isinstance(ratio := line.get(MOTION), int | float):
            motion.append((line["update"], float(ratio)))
        for name, value in line.items():
            if "/" not in name and name not in _NO_LOSSES and isinstance(value, int | float):
                losses.setdefault(name, []).append((line["update"], float(value)))
    update = max((line["update"] for line in lines), default=0)
    thinned = {name: _thinned(points) for name, points in losses.items()}
    return Progress(update, thinned, _thinned(motion), warnings, sheets, mark)


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Every so-manieth point of a long curve, and the last one."""
    stride = -(-len(points) // _POINTS)
    return points if stride <= 1 else [*points[::stride], *points[-1:]]
