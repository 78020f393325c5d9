"""What the bench of the laboratory found (`mcm bench pocket`): tables of the README and of docs/results.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "pocket" / "pocket.json"
STEPS = (1, 2, 4, 8)
TABLE = ("ddim", "dpm++", "lcm", "lcm+frames", "animatelcm", "animatediff-lightning", "mcm")
# The paper's table: FVD of MCM as a share of LCM's, in 1, 2, 4 and 8 steps (arXiv 2406.06890).
PAPER = {"pocket-animatediff": (0.94, 0.88, 0.84, 0.81), "pocket-modelscope": (0.46, 0.53, 0.58, 0.67)}


class Measure(NamedTuple):
    """How a field of the rows is called and written, in short and with its interval; which of a column is best."""

    name: str
    title: str
    short: str
    exact: str
    best: Callable[[Sequence[float]], float] | None = None


MEASURES = {
    "fvd": Measure("FVD", "FVD (lower is better)", "{:.2f}", "{:.3f}", min),
    "clipsim": Measure("CLIPSIM", "CLIPSIM (higher is better)", "{:.1f}", "{:.1f}", max),
    "action_accuracy": Measure("action", "Clips that show the action that was asked for", "{:.0%}", "{:.3f}"),
    "motion_ratio": Measure("motion", "Motion (1 is that of the teacher's 25 steps)", "{:.2f}", "{:.2f}"),
}
MISSING = "Not measured yet."
Rows = Sequence[Mapping[str, Any]]


def known() -> Mapping[str, Any]:
    """The bench's JSON; without rows where there is none yet."""
    return json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}


def short() -> str:
    """The paper's table in the laboratory, for the README: the best of a column in bold."""
    report = known()
    parts = []
    for teacher, rows in _by_teacher(row for row in report["rows"] if row["method"] in TABLE):
        systems = _systems(rows)
        lines = [table_head("system", "seed", *(f"{one.name} {steps}" for one in MEASURES.values() for steps in STEPS))]
        for (method, seed), cells in systems.items():
            if not set(STEPS) & set(cells):
                continue
            line = []
            for name, measure in MEASURES.items():
                for steps in STEPS:
                    shown = _cell(cells.get(steps), name, measure.short)
                    column = [row[name] for row in rows if row["steps"] == steps and row.get(name) is not None]
                    leads = measure.best and steps in cells and cells[steps].get(name) == measure.best(column)
                    line.append(f"**{shown}**" if leads else shown)
            lines.append(table_line(method, "-" if seed is None else seed, *line))
        words = f"{teacher}, {rows[0]['n']} held-out clips a cell, {report['provenance']['updates']} updates a student"
        parts.append(f"{words}{_longest(rows)}:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) or MISSING


def protocol() -> str:
    """What all rows share."""
    shared = known().get("provenance")
    if shared is None:
        return MISSING
    systems = shared["systems"]
    commits = dict.fromkeys((one.get("commit") or "-")[:7] for one in systems.values())
    training = sum(one.get("training_seconds") or 0 for one in systems.values()) / 3600
    sampling = sum((row.get("seconds") or 0) * row["n"] for row in known()["rows"]) / 3600
    return (
        f"{shared['updates']} updates of a student and {shared['count']} held-out clips a cell, where a table says "
        f"nothing else; {len(systems)} systems. One thread trained what is reported for {training:.1f} hours at least "
        f"(of runs in parts, the last counts) and made its clips in {sampling:.1f}, trials not counted. "
        f"torch {shared['torch']}, diffusers {shared['diffusers']}, {shared['machine']}; code of {', '.join(commits)}."
    )


def table() -> str:
    """A line for each system and seed, a table for each measure, 95 % intervals in brackets."""
    parts = []
    for teacher, rows in _by_teacher(row for row in known()["rows"] if row["method"] in TABLE):
        parts.append(f"### {teacher}\n\n95 % intervals in brackets{_longest(rows)}.")
        for name, measure in MEASURES.items():
            lines = [table_head("system", "seed", *map(_steps, STEPS))]
            for (method, seed), cells in _systems(rows).items():
                if set(STEPS) & set(cells):
                    shown = [_cell(cells.get(steps), name, measure.exact, True) for steps in STEPS]
                    lines.append(table_line(method, "-" if seed is None else seed, *shown))
            parts.append(f"{measure.title}:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) or MISSING


def ratios() -> str:
    """FVD of MCM as a share of LCM's with the same training seed, and the paper's."""
    lines = []
    for teacher, rows in _by_teacher(known()["rows"]):
        systems = _systems(rows)
        pairs = [(seed, cells, systems.get(("lcm", seed), {})) for (method, seed), cells in systems.items()
                 if method == "mcm"]  # fmt: skip
        measured = [pair for pair in pairs if set(STEPS) <= set(pair[1]) & set(pair[2])]
        for seed, ours, theirs in measured:
            lines.append(table_line(teacher, seed, *(f"{ours[n]['fvd'] / theirs[n]['fvd']:.2f}" for n in STEPS)))
        if measured:
            lines.append(table_line(teacher, "the paper's", *(f"{share:.2f}" for share in PAPER[teacher])))
    return "\n".join([table_head("teacher", "seed", *map(_steps, STEPS)), *lines]) if lines else MISSING


def pictures() -> str:
    """FID of frames to a style's pictures, and what is left of the action."""
    lines = []
    for teacher, rows in _by_teacher(known()["rows"]):
        systems = _systems(rows)
        longest = systems.get(("dpm++", None), {}).get(25, {}).get("fids", {})
        for (method, _), cells in systems.items():
            style = method.partition("+")[2]
            if not any(style in row["fids"] for row in cells.values()):
                continue
            for name, own in (("mcm", systems.get(("mcm", 0), {})), (method, cells)):
                fids = [_number(own.get(n, {}).get("fids", {}).get(style), "{:.2f}") for n in STEPS]
                right = [_cell(own.get(n), "action_accuracy", "{:.0%}") for n in STEPS]
                teachers = _number(longest.get(style), "{:.2f}")
                lines.append(table_line(teacher, style, name, *fids, teachers, *right))
    head = table_head("teacher", "pictures", "student", *(f"FID {n}" for n in STEPS), "FID of the teacher, 25",
                 *(f"action {n}" for n in STEPS))  # fmt: skip
    return "\n".join([head, *dict.fromkeys(lines)]) if lines else MISSING


def resampled() -> str:
    """The same students with some of their noise kept between steps."""
    lines = []
    for teacher, rows in _by_teacher(known()["rows"]):
        systems = _systems(rows)
        for (method, seed), cells in systems.items():
            own = method.removesuffix("-tcd")
            if own == method:
                continue
            for sampler, those in (("consistency", systems.get((own, seed), {})), ("tcd", cells)):
                shown = [_cell(those.get(n), name, one.exact) for name, one in MEASURES.items() for n in STEPS[1:]]
                lines.append(table_line(teacher, own, sampler, *shown))
    names = [f"{one.name} {n}" for one in MEASURES.values() for n in STEPS[1:]]
    head = table_head("teacher", "student", "sampler", *names)
    return "\n".join([head, *lines]) if lines else MISSING


def ablations() -> str:
    """The parts of MCM, at a quarter of the budget."""
    rows = [row for row in known()["rows"] if row["method"].startswith("quarter-")]
    lines = [table_head("part", *(f"{one.name} {n}" for one in MEASURES.values() for n in (1, 4)))]
    for (method, _), cells in _systems(rows).items():
        shown = [_cell(cells.get(n), name, one.short, name == "fvd") for name, one in MEASURES.items() for n in (1, 4)]
        lines.append(table_line(method.removeprefix("quarter-"), *shown))
    return "\n".join(lines) if rows else MISSING


def large() -> str:
    """Twice the size and twice the frames."""
    rows = [row for row in known()["rows"] if row["method"].endswith("-large")]
    names = [one.name for one in MEASURES.values()]
    lines = [table_head("teacher", "system", "updates", "steps", "clips", *names, "seconds a clip")]
    for row in rows:
        shown = [_cell(row, name, one.exact, True) for name, one in MEASURES.items()]
        own = (row["method"], row.get("updates") or "-", row["steps"], row["n"])
        lines.append(table_line(row["teacher"], *own, *shown, f"{row['seconds']:.1f}"))
    return "\n".join(lines) if rows else MISSING


def trials() -> str:
    """What the trials chose, and how long a run of it took."""
    systems = known().get("provenance", {}).get("systems", {})
    tuned = ("guidance", "optim.lr", "method.adversarial_weight", "method.adversarial_rate")
    names = ("guidance", "rate", "adversarial weight", "share of the rate where an adversary alone teaches")
    lines = [table_head("system", *names, "minutes of training")]
    for name, one in systems.items():
        chosen, minutes = one.get("settings") or {}, (one.get("training_seconds") or 0) / 60
        values = [_number(chosen.get(key), "{:g}") for key in tuned]
        lines.append(table_line(name, *values, f"{minutes:.0f}" if minutes >= 1 else "-"))
    return "\n".join(lines) if systems else MISSING


BLOCKS: Mapping[str, Callable[[], str]] = {
    "protocol": protocol, "table": table, "ratios": ratios, "pictures": pictures, "resampled": resampled,
    "ablations": ablations, "large": large, "trials": trials,
}  # fmt: skip
"""The tables of docs/results.md, by the names of their marks."""


def _longest(rows: Rows) -> str:
    row = next((row for row in rows if row["method"] == "dpm++" and row["steps"] == 25), None)
    if row is None:
        return ""
    said = ", ".join(f"{one.name} {_cell(row, name, one.short, name == 'fvd')}" for name, one in MEASURES.items())
    return f"; the teacher in 25 steps of DPM++, guidance {row['guidance']:g}: {said}"


def _by_teacher(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, Rows]]:
    kept = list(rows)
    teachers = dict.fromkeys(row["teacher"] for row in kept)
    return [(teacher, [row for row in kept if row["teacher"] == teacher]) for teacher in teachers]


def _systems(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int | None], dict[int, Mapping[str, Any]]]:
    """Rows by (method, training seed) and number of steps."""
    found: dict[tuple[str, int | None], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method"], row.get("seed")), {})[row["steps"]] = row
    return found


def _cell(row: Mapping[str, Any] | None, name: str, form: str, ends: bool = False) -> str:
    row = row or {}
    interval = row.get("intervals", {}).get(name) if ends else None
    said = _number(row.get(name), form)
    return said if interval is None else f"{said} ({form.format(interval[0])}-{form.format(interval[1])})"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _steps(number: int) -> str:
    return f"{number} step{'s' if number > 1 else ''}"


def table_head(*names: str) -> str:
    """The first two lines of a Markdown table."""
    return table_line(*names) + "\n|" + "---|" * len(names)


def table_line(*cells: object) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"
