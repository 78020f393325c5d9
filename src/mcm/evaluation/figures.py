"""Figures of a report as inline SVG, for `mcm.evaluation.page`.

Colours are classes of the page's style (s0 ... s7), so that a figure can be read in both themes and on paper; marks and
dashes differ too, for those who see no colours. Every figure says in words what it shows.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence

from mcm.evaluation.curves import curve_points
from mcm.evaluation.report import Row

COLOURS = 8
_MARKS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3 -3h6v6h-6z",
    "M0 -4l4 7h-8z",
    "M0 -4.5l4 4.5l-4 4.5l-4 -4.5z",
)
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def text(value: object) -> str:
    """Anything from outside as text of the page, good for attributes too: escaped, encodable, no control characters."""
    plain = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", plain), quote=True)


def note(words: str) -> str:
    """A paragraph of explanation."""
    return f'<p class="note">{text(words)}</p>'


def in_steps(steps: int) -> str:
    """ "1 step", "4 steps"."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def short(value: float, like: float | None = None) -> str:
    """A number for reading, to about four digits; an end of an interval with as many decimals as its value `like`."""
    size = abs(value if like is None else like)
    if size >= 1e6 or size < 1e-4:
        return f"{value:.3g}"
    decimals = 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.1 else 5
    return f"{value:.{decimals}f}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers, about `wanted` of them, that cover low..high."""
    if not high > low:
        room = abs(high) / 10 or 1.0
        low, high = low - room, high + room
    power = 10.0 ** math.floor(math.log10((high - low) / wanted))
    step = next(k * power for k in (1, 2, 2.5, 5, 10, 20) if k * power * wanted >= high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def step_figure(rows: Sequence[Row], metric: str, title: str, mark: str, looks: Mapping[str, int]) -> str:
    """`metric` against steps on a log-2 axis: a line for each method of `rows` with bars of its 95 % intervals.

    mark: an id of the page's, unique. looks: number of each method's look. Other training seeds are averaged, as in
    `curves.step_curves`. Returns "" where no row has the metric.
    """
    lines = {method: curve_points([r for r in rows if r.method == method], metric) for method in looks}
    lines = {method: points for method, points in lines.items() if points}
    if not lines:
        return ""
    width, height, left, right, top, bottom = 360, 240, 52, 348, 12, 200
    every = [point for points in lines.values() for point in points]
    steps = sorted({point[0] for point in every})
    target = {"motion_ratio": [1.0]}.get(metric, [])
    zero = [] if metric == "clipsim" else [0.0]  # a distance or a ratio is seen from 0, a similarity is not
    at = ticks(min(*target, *zero, *(p[2] for p in every), math.inf), max(*target, *(p[3] for p in every), -math.inf))
    span = math.log2(steps[-1] / steps[0])

    def x(step: int) -> float:
        return (left + right) / 2 if not span else left + 14 + (right - left - 28) * math.log2(step / steps[0]) / span

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - at[0]) / (at[-1] - at[0])

    parts = [
        f'<path class="grid" d="M{left} {y(v):.1f}H{right}"/>'
        f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in at
    ]  # fmt: skip
    parts += [f'<text x="{x(s):.1f}" y="{bottom + 16}" text-anchor="middle">{s}</text>' for s in steps]
    parts += [f'<path class="target" d="M{left} {y(v):.1f}H{right}"/>' for v in target]
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 6}" text-anchor="middle">steps (log scale)</text>')
    middle, words = (len(lines) - 1) / 2, []
    for number, (method, points) in enumerate(lines.items()):
        shift = max(-8.0, min(8.0, (number - middle) * 3))  # bars at the same step stand beside each other
        places = [(x(s) + shift, y(value), y(low), y(high)) for s, value, low, high in points]
        parts.append(_series(places, looks[method]))
        words.append(f"{method}: " + ", ".join(f"{short(v)} at {in_steps(s)}" for s, v, _, _ in points))
    told = text(f"{title} against steps. {'; '.join(words)}.")
    return (
        f'<figure><figcaption>{text(title)}</figcaption><svg role="img" aria-labelledby="{mark}" '
        f'viewBox="0 0 {width} {height}"><title id="{mark}">{told}</title>{"".join(parts)}</svg></figure>'
    )


def _series(places: Sequence[tuple[float, float, float, float]], look: int) -> str:
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in places)
    bars = "".join(
        f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6" for x, _, low, high in places
    )
    marks = "".join(
        f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{_mark(look)}"/>' for x, y, _, _ in places
    )
    return f'<g class="s{look % COLOURS}"><path d="{line}"{_dash(look)}/><path d="{bars}"/>{marks}</g>'


def _mark(look: int) -> str:
    return _MARKS[look % len(_MARKS)]


def _dash(look: int) -> str:
    dash = _DASHES[(look // len(_MARKS)) % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def legend(looks: Mapping[str, int]) -> str:
    """Which line is which method's."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 34 12" aria-hidden="true"><g class="s{look % COLOURS}">'
        f'<path d="M1 6H33"{_dash(look)}/><path class="mark" transform="translate(17 6)" d="{_mark(look)}"/></g></svg>'
        f"<bdi>{text(method)}</bdi></li>" for method, look in looks.items()
    )  # fmt: skip
    return f'<ul class="legend" aria-label="lines">{items}</ul>'


def motion_figure(rows: Sequence[Row], mark: str, looks: Mapping[str, int]) -> str:
    """Motion ratio of every row with its interval, beside 1, the teacher's motion. "" where none was measured."""
    measured = [(row, row.motion_ratio) for row in rows if row.motion_ratio is not None]
    if not measured:
        return ""
    ends = [[e for e in row.intervals.get("motion_ratio", ()) if e is not None] or [ratio] for row, ratio in measured]
    at = ticks(0.0, max(1.0, *(max(pair) for pair in ends), *(ratio for _, ratio in measured)))
    width, left, right, line = 640, 210, 560, 20
    height = line * len(measured) + 34
    bottom = height - 28

    def x(value: float) -> float:
        return left + (right - left) * (value - at[0]) / (at[-1] - at[0])

    parts = [
        f'<path class="grid" d="M{x(v):.1f} 4V{bottom}"/>'
        f'<text x="{x(v):.1f}" y="{bottom + 16}" text-anchor="middle">{v:g}</text>' for v in at
    ]  # fmt: skip
    parts.append(f'<path class="target" d="M{x(1):.1f} 4V{bottom}"/>')
    for number, ((row, ratio), pair) in enumerate(zip(measured, ends, strict=True)):
        y, look = 4 + line * (number + 0.5), looks[row.method]
        name = row.method if len(row.method) <= 18 else row.method[:17] + "…"
        seed = f", seed {row.seed}" if row.seed else ""
        bar = f"M{x(min(pair)):.1f} {y}H{x(max(pair)):.1f}M{x(min(pair)):.1f} {y - 3}v6M{x(max(pair)):.1f} {y - 3}v6"
        parts.append(
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{text(name)}, {in_steps(row.steps)}{seed}</text>'
            f'<g class="s{look % COLOURS}"><path d="{bar}"/>'
            f'<path class="mark" transform="translate({x(ratio):.1f} {y})" d="{_mark(look)}"/></g>'
            f'<text x="{right + 10}" y="{y + 4}">{short(ratio)}</text>'
        )
    words = "; ".join(f"{row.method} at {in_steps(row.steps)} {short(ratio)}" for row, ratio in measured)
    told = text(f"Motion ratio, 1 is as much as the teacher: {words}.")
    return (
        f'<svg class="wide" role="img" aria-labelledby="{mark}" viewBox="0 0 {width} {height}">'
        f'<title id="{mark}">{told}</title>{"".join(parts)}</svg>'
    )
