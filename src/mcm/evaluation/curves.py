"""Step curves: a report's metrics against the number of steps, as SVG or PNG (by the file's suffix)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

from mcm.errors import UserError
from mcm.evaluation.report import TITLES, Row
from mcm.output import whole

Point = tuple[int, float, float, float]  # steps, value, low, high

DRAWN = ("fvd", "clipsim", "motion_ratio")


def step_curves(path: str | Path, rows: Sequence[Row], metrics: Sequence[str] = DRAWN) -> Path:
    """One line for each method of `rows`, over 1, 2, 4 ... steps, of one colour in all panels; a panel for each teacher
    and metric.

    Rows of one method and number of steps (other training seeds) are averaged; bars are the 95 % intervals, the widest
    of them. FVD is drawn by its logarithm, the others where most points lie; how many are far off is said below. Raises
    UserError where matplotlib is not installed, or nothing can be drawn.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "step curves need matplotlib: pip install 'motion-consistency[bench]', or go without"
        ) from error
    teachers = list(dict.fromkeys(row.teacher for row in rows))
    if not teachers:
        raise UserError("step curves: the report has no rows to draw")
    figure = Figure(figsize=(4.2 * len(metrics), 3.2 * len(teachers)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(len(teachers), len(metrics), squeeze=False)
    colours = method_colours(rows)
    for teacher, line in zip(teachers, panels, strict=True):
        own = [row for row in rows if row.teacher == teacher]
        for metric, panel in zip(metrics, line, strict=True):
            points = []
            for method in dict.fromkeys(row.method for row in own):
                line_points = curve_points([row for row in own if row.method == method], metric)
                _line(panel, line_points, method, colours[method])
                points += line_points
            steps = sorted({row.steps for row in own})
            outside = ""
            panel.set_xscale("log", base=2)
            if metric == "fvd":  # of one step and of eight it can differ a hundredfold
                panel.set_yscale("log")
                panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            else:
                outside = _look_closer(panel, points)
            panel.set_xticks(steps, [str(step) for step in steps])
            panel.set_title(f"{teacher}: {TITLES[metric]}", fontsize=9)
            panel.set_xlabel(f"steps{outside}", fontsize=8)
            panel.tick_params(labelsize=8)
            panel.grid(alpha=0.3)
        line[0].legend(fontsize=7)
    path = Path(path)
    # No date and no chance inside: the same numbers make the same file.
    with whole(path) as partial, rc_context({"svg.hashsalt": "mcm"}):
        kept: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 150}
        figure.savefig(partial, **kept)
    return path


def method_colours(rows: Iterable[Row]) -> dict[str, str]:
    """A colour of matplotlib's cycle for each method, by the order in which they come, whatever their teacher is."""
    return {method: f"C{number}" for number, method in enumerate(dict.fromkeys(row.method for row in rows))}


def _line(panel: Any, points: Sequence[Point], method: str, colour: str) -> None:
    if points:
        steps, values, lows, highs = zip(*points, strict=True)
        below = [value - low for value, low in zip(values, lows, strict=True)]
        above = [high - value for value, high in zip(values, highs, strict=True)]
        look = {"marker": "o", "ms": 3, "lw": 1.2, "capsize": 2, "color": colour}
        panel.errorbar(steps, values, yerr=(below, above), label=method, **look)


def _look_closer(panel: Any, points: Sequence[Point]) -> str:
    """Let the panel show where most of its points lie, with their intervals: beside a system that is far off the others
    are one line. Returns how many are outside, in words for its label; of a dozen points or fewer none is."""
    if len(points) <= 12:
        return ""
    first, _, third = quantiles([value for _, value, _, _ in points], n=4)
    reach = 2 * (third - first)
    inside = [point for point in points if first - reach <= point[1] <= third + reach]
    low, high = min(point[2] for point in inside), max(point[3] for point in inside)
    if len(inside) == len(points) or low == high:
        return ""
    panel.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return f" ({len(points) - len(inside)} far off and not shown)"


def curve_points(rows: Sequence[Row], metric: str) -> list[Point]:
    """(steps, value, low, high) of one method's rows by rising steps: the mean of its training seeds' values, and the
    widest of their 95 % intervals, which holds the value. Rows without the metric are passed over."""
    points = []
    for steps in sorted({row.steps for row in rows}):
        here = [row for row in rows if row.steps == steps and getattr(row, metric) is not None]
        if not here:
            continue
        value = sum(getattr(row, metric) for row in here) / len(here)
        ends = [row.intervals[metric] for row in here if metric in row.intervals]
        low = min((low for low, _ in ends if low is not None), default=value)
        high = max((high for _, high in ends if high is not None), default=value)
        points.append((steps, value, min(value, low), max(value, high)))
    return points
