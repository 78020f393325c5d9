"""Rows of measurements with the circumstances under which they were taken, as JSON and as tables.

Importing this module loads no torch, so that reading and printing a report is quick.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mcm.errors import UserError, one_of

SETTING = ("teacher", "method", "sampler", "steps", "guidance", "n")
ALWAYS = (*SETTING, "fvd", "clipsim", "motion_ratio", "fid", "intervals")
"""Fields that every row of a report file has, null when not measured."""

NAMES = {"fvd": "FVD", "clipsim": "CLIPSIM", "motion_ratio": "motion ratio", "fid": "FID of frames"}
_BEST = ("lower is better", "higher is better", "1 is the teacher's", "lower is better")
TITLES = {key: f"{name} ({best})" for (key, name), best in zip(NAMES.items(), _BEST, strict=True)}
"""The metrics for people: their names, and those with what is good."""

DIGITS = {
    "fvd": 1,
    "fid": 1,
    "clipsim": 2,
    "motion_ratio": 2,
    "action_accuracy": 3,
    "scene_accuracy": 3,
    "colour_accuracy": 3,
    "seconds": 2,
    "motion": 4,
    "temporal_std": 3,
    "guidance": 1,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sampler setting of one model, measured.

    method: "ddim" and "dpm++" for the teacher's own rows, else the student's method.
    n: clips.
    fvd, fid: Frechet distances, lower is better. clipsim: -100..100, higher is better.
    motion_ratio: student / teacher, 1 is equal. A metric is None when not measured; `notes` may say why.
    intervals: 95 % [low, high] by metric.

    The rest is optional and left out of the JSON when None or empty. motion: mean flow per frame, fraction of
    the height; temporal_std: in pixels of [-1, 1]; accuracies: 0..1; seconds: per clip; fids: by picture set; seed,
    updates: of the training that made the student.
    """

    teacher: str
    method: str
    sampler: str
    steps: int
    guidance: float
    n: int
    fvd: float | None = None
    clipsim: float | None = None
    motion_ratio: float | None = None
    fid: float | None = None
    intervals: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    motion: float | None = None
    temporal_std: float | None = None
    action_accuracy: float | None = None
    scene_accuracy: float | None = None
    colour_accuracy: float | None = None
    seconds: float | None = None
    fids: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    updates: int | None = None
    notes: Sequence[str] = ()

    @property
    def key(self) -> tuple[str, str, str, int, float, int | None]:
        """What the row measures: rows of equal keys replace each other."""
        return (self.teacher, self.method, self.sampler, self.steps, float(self.guidance), self.seed)

    def to_dict(self) -> dict[str, Any]:
        """The row for JSON: optional values that are None are left out, NaN and infinity become None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: value for name, value in values.items() if name in ALWAYS or value not in (None, (), {})}
        return finite(kept)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """The row of a JSON object; UserError for a field that is unknown or missing."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise one_of("field of a report row", name, known)
        missing = [name for name in SETTING if name not in values]
        if missing:
            raise UserError(
                f"a report row lacks {', '.join(missing)}: expected at least {', '.join(SETTING)}"
            )
        given = dict(values)
        given["notes"] = tuple(given.get("notes", ()))
        return cls(**given)


@dataclass
class Report:
    """Rows and the provenance they share."""

    rows: list[Row] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def merge(self, rows: Iterable[Row]) -> Report:
        """A report in which `rows` replace those of the same key in their place, and new ones follow."""
        merged = {row.key: row for row in self.rows}
        merged.update((row.key, row) for row in rows)
        return Report(list(merged.values()), self.provenance)

    def save(self, path: str | Path) -> None:
        """Writes {"rows": [...], "provenance": {...}} whole or not at all; UserError when the disk
        refuses."""
        target = Path(path)
        content = {"rows": [row.to_dict() for row in self.rows], "provenance": finite(self.provenance)}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(part, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write the report {target}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Reads what `save` wrote; UserError when the file is missing or no report."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the report {path}: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
            raise UserError(f'{path} is no report: expected {{"rows": [...], "provenance": {{...}}}}')
        try:
            return cls([Row.from_dict(row) for row in content["rows"]], dict(content.get("provenance", {})))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def finite(value: Any) -> Any:
    """`value` for JSON: NaN and infinity become None, mappings dicts, sequences lists, numpy numbers
    Python's."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def markdown_table(rows: Sequence[Row], columns: Sequence[str], intervals: bool = False) -> str:
    """A Markdown table of the rows; columns name fields of `Row`. Missing values are dashes.

    intervals: write a metric that has one as `12.3 [11.0, 14.1]`. UserError for an unknown column.
    """
    known = [f.name for f in fields(Row) if f.name != "intervals"]
    for column in columns:
        if column not in known:
            raise one_of("column of a report", column, known)
    numeric = [column for column in columns if column not in ("teacher", "method", "sampler", "notes")]
    lines = [
        "| " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|" + "|".join("---:" if column in numeric else "---" for column in columns) + "|",
    ]
    lines += ["| " + " | ".join(_cell(row, column, intervals) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(row: Row, column: str, intervals: bool) -> str:
    if column == "notes":
        text = "; ".join(row.notes) or "–"
    else:
        text = _number(getattr(row, column), column)
    if intervals and text != "–" and column in row.intervals:
        text += f" [{', '.join(_number(end, column) for end in row.intervals[column])}]"
    return text.replace("|", "\\|")


def _number(value: Any, column: str) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if column in DIGITS:
        return f"{value:.{DIGITS[column]}f}"
    return str(value)


def provenance(protocols: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Where, when and with what the numbers were made; what cannot be found out is None.

    protocols: how each metric was measured (`Evaluator.protocol()`), kept under "protocols".
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # Only the program's name: where it was installed says nothing about the numbers.
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else [],
        "mcm": _version("motion-consistency"),
        **git_state(Path(__file__)),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "diffusers": _version("diffusers"),
        "transformers": _version("transformers"),
        "machine": platform.machine(),
        "cpus": _cpus(),
        "protocols": {name: dict(protocol) for name, protocol in (protocols or {}).items()},
    }


def git_state(file: Path) -> dict[str, Any]:
    """{"commit", "modified"} of the checkout that tracks `file`; both None outside of one or without git.

    A file that merely lies below some checkout (a virtual environment in another project) is not tracked by
    it, and that project's commit would say nothing about this code."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:
        return {"commit": None, "modified": None}
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if changes is None else bool(changes)}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpus() -> int | None:
    """CPUs this process may use, which in a container is fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
