"""A report to look at: rows, provenance and clips as one HTML text that needs nothing else.

The page holds no script and asks for nothing (its Content-Security-Policy allows data: pictures and its own style), so
it opens from disk, on paper, and years later. Everything from outside is escaped. Importing this loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mcm.evaluation.figures import in_steps, legend, motion_figure, note, short, step_figure, text
from mcm.evaluation.page_style import style
from mcm.evaluation.page_wall import WALL_BYTES, Shown, films, fitting, stills
from mcm.evaluation.report import NAMES, TITLES, Report, Row, finite
from mcm.output import flat

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_MORE = {
    "motion": "motion (flow a frame / height)",
    "temporal_std": "temporal std (pixels of [-1, 1])",
    "action_accuracy": "action accuracy",
    "scene_accuracy": "scene accuracy",
    "colour_accuracy": "colour accuracy",
    "seconds": "seconds a clip",
    "updates": "updates",
}


def page(
    report: Report,
    shown: Sequence[Shown] = (),
    *,
    title: str = "Report",
    reference: str | None = None,
    settings: Mapping[str, Any] | None = None,
    drawn: Sequence[Row] | None = None,
    limit: int = WALL_BYTES,
) -> str:
    """The HTML of a report.

    shown: clips for the video wall; those that `limit` bytes do not hold are left out, whole prompts at a time, and the
    page says so. reference: what the videos were compared with. settings: what was asked for. drawn: the rows whose
    step curves are drawn, default all.
    """
    rows = [Row.from_dict(row.to_dict()) for row in report.rows]
    drawn = rows if drawn is None else [Row.from_dict(row.to_dict()) for row in drawn]
    looks = {method: number for number, method in enumerate(dict.fromkeys(row.method for row in rows))}
    teachers = list(dict.fromkeys(row.teacher for row in rows))
    lines = fitting(shown, limit)
    parts = [
        f"<header><h1>{text(title)}</h1>{_lead(rows, report.provenance, reference)}</header>",
        _section("Measured", [_table(t, [r for r in rows if r.teacher == t]) for t in teachers], new=False),
        _section("Step curves", [_curves(n, t, drawn, looks) for n, t in enumerate(teachers)]),
        _section("Motion", [_motion(n, t, rows, looks) for n, t in enumerate(teachers)]),
        _section("Videos", films(lines, len(shown), limit) if shown else []),
        _section("Frames", stills(lines)),
        _provenance(report.provenance, settings or {}),
        _raw(rows),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, parts: Iterable[str], new: bool = True) -> str:
    """The parts that are not empty under a heading, on a new page of paper; "" where all are."""
    inside = "\n".join(part for part in parts if part)
    start = '<section class="new">' if new else "<section>"
    return f"{start}<h2>{text(title)}</h2>\n{inside}</section>" if inside else ""


def _lead(rows: Sequence[Row], provenance: Mapping[str, Any], reference: str | None) -> str:
    if not rows:
        return '<p class="lead">The report has no rows: nothing was measured.</p>'
    metrics = [name for key, name in NAMES.items() if any(getattr(row, key) is not None for row in rows)]
    counts = sorted({row.n for row in rows})
    real = (provenance.get("protocols") or {}).get("fvd", {}).get("reference_clips")
    against = (f", beside {real} real clips" if real else "") + (f" of {reference}" if real and reference else "")
    words = (
        f"{_list(metrics) or 'Nothing'} of {_list(dict.fromkeys(row.method for row in rows))} from the teacher "
        f"{_list(dict.fromkeys(row.teacher for row in rows))}, in {_list(sorted({row.steps for row in rows}))} steps: "
        f"{_list(counts)} generated clips a row{against}."
    )
    told = [f'<p class="lead">{text(words)}</p>']
    if len(counts) > 1:
        told.append(note("Rows of unequal numbers of clips do not compare: Fréchet distances fall with that number."))
    told.append(note(
        "In brackets: 95 % intervals. FVD rewards the content of frames more than motion, so read it beside the motion "
        "ratio; rows compare only at the same number of clips, networks and reference."
    ))  # fmt: skip
    return "\n".join(told)


def _list(items: Iterable[object]) -> str:
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _table(teacher: str, rows: Sequence[Row]) -> str:
    metrics = [name for name in TITLES if any(getattr(row, name) is not None for row in rows)]
    more = [name for name in _MORE if any(getattr(row, name) is not None for row in rows)]
    seeds = ["seed"] if any(row.seed is not None for row in rows) else []
    sets = list(dict.fromkeys(name for row in rows for name in row.fids))
    own = {"sampler": "sampler", "steps": "steps", "guidance": "guidance scale", "n": "clips"} | dict.fromkeys(
        seeds, "seed"
    )
    columns = [(label, lambda row, name=name: _number(getattr(row, name))) for name, label in own.items()]
    columns += [(TITLES[name], lambda row, name=name: _metric(row, name)) for name in metrics]
    tables = [_grid(f"Systems of the teacher {teacher}", columns, rows)]
    columns = [("steps", lambda row: _number(row.steps))]
    columns += [("seed", lambda row: _number(row.seed)) for _ in seeds]
    columns += [(_MORE[name], lambda row, name=name: _metric(row, name)) for name in more]
    columns += [(f"FID, {name} pictures", lambda row, name=name: _number(row.fids.get(name))) for name in sets]
    if more or sets:
        tables.append(_grid(f"Further measures, teacher {teacher}", columns, rows))
    notes: dict[str, list[str]] = {}
    for row in rows:
        for said in row.notes:
            notes.setdefault(said, []).append(f"{row.method} in {in_steps(row.steps)}")
    tables += [note(f"{said} ({_list(where)})") for said, where in notes.items()]
    return f"<h3>{text(teacher)}</h3>\n" + "\n".join(tables)


def _grid(caption: str, columns: Sequence[tuple[str, Callable[[Row], str]]], rows: Sequence[Row]) -> str:
    """A table with a line for each row, headed by its method; the columns' functions make the cells' HTML."""
    head = "".join(f'<th scope="col"{"" if label == "sampler" else _RIGHT}>{text(label)}</th>' for label, _ in columns)
    body = "".join(
        f'<tr><th scope="row"><bdi>{text(row.method)}</bdi></th>'
        + "".join(f"<td{'' if label == 'sampler' else _RIGHT}>{cell(row)}</td>" for label, cell in columns)
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{text(caption)}</caption>'
        f'<thead><tr><th scope="col">system</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


_RIGHT = ' class="number"'


def _number(value: Any, like: float | None = None) -> str:
    """A value for reading that keeps all its digits, as in the JSON."""
    if value is None:
        return '<span title="not measured">–</span>'
    if isinstance(value, float):
        return f'<data value="{json.dumps(value)}">{short(value, like)}</data>'
    return text(value)


def _metric(row: Row, name: str) -> str:
    value = getattr(row, name)
    ends = row.intervals.get(name)
    if value is None or not ends:
        return _number(value)
    shown = ", ".join(_number(end if end is None else float(end), value) for end in ends)
    return f'{_number(value)}<span class="ends">[{shown}]</span>'


def _curves(number: int, teacher: str, rows: Sequence[Row], looks: Mapping[str, int]) -> str:
    own = [row for row in rows if row.teacher == teacher]
    looks = {method: look for method, look in looks.items() if any(row.method == method for row in own)}
    figures = [step_figure(own, name, label, f"c{number}{name}", looks) for name, label in TITLES.items()]
    if not any(figures):
        return ""
    return f'<h3>{text(teacher)}</h3>{legend(looks)}<div class="figures">{"".join(figures)}</div>'


def _motion(number: int, teacher: str, rows: Sequence[Row], looks: Mapping[str, int]) -> str:
    figure = motion_figure([row for row in rows if row.teacher == teacher], f"m{number}", looks)
    words = "Mean optical flow as a fraction of the teacher's with the same prompts and seeds. Below 1 motion was lost."
    return f"<h3>{text(teacher)}</h3>{note(words)}{figure}" if figure else ""


def _provenance(provenance: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    protocols = provenance.get("protocols") or {}
    rest = {key: value for key, value in provenance.items() if key != "protocols"}
    plain = {key: value for key, value in rest.items() if not isinstance(value, Mapping)}
    parts = [
        _facts("Settings", settings),
        *(_facts(f"Protocol of {name}", protocol) for name, protocol in protocols.items()),
        _facts("Made with", plain),
    ]
    for key, value in rest.items():
        if isinstance(value, Mapping):
            parts.append(f"<details><summary>{text(key)}</summary>{_facts(key, value)}</details>")
    return _section("Settings and provenance", parts)


def _facts(caption: str, values: Mapping[str, Any]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{text(key.replace("_", " "))}</th><td>{text(_said(key, value))}</td></tr>\n'
        for key, value in flat(finite(values)).items()
    )
    return f'<table class="facts"><caption>{text(caption)}</caption><tbody>{lines}</tbody></table>' if lines else ""


def _said(key: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) if key == "command" else ", ".join(map(str, value))
    if value is None:
        return "–"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _raw(rows: Sequence[Row]) -> str:
    listed = json.dumps([row.to_dict() for row in rows], indent=1, ensure_ascii=False)
    return f"<details><summary>All rows as JSON</summary><pre>{text(listed)}</pre></details>" if rows else ""
