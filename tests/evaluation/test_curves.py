"""Step curves: a line for each method, a panel for each teacher and metric, the same file from the same numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcm.errors import UserError
from mcm.evaluation.curves import method_colours, step_curves
from mcm.evaluation.report import Row


def row(method: str, steps: int, fvd: float | None, seed: int | None = None, teacher: str = "one") -> Row:
    ends = {} if fvd is None else {"fvd": [fvd - 1, fvd + 2]}
    return Row(
        teacher=teacher, method=method, sampler="x", steps=steps, guidance=1, n=4, fvd=fvd, seed=seed, intervals=ends
    )


def points(svg: str) -> int:
    return svg.count("<use ")


def test_a_picture_of_every_kind(tmp_path: Path) -> None:
    rows = [row(method, steps, 10 / steps) for method in ("ddim", "mcm") for steps in (1, 2, 4)]
    svg = step_curves(tmp_path / "deep" / "curves.svg", rows, ("fvd",)).read_text()
    assert svg.lstrip().startswith("<?xml")
    with Image.open(step_curves(tmp_path / "curves.png", rows)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    more = step_curves(tmp_path / "more.svg", [*rows, row("lcm", 1, 3.0)], ("fvd",)).read_text()
    assert points(more) > points(svg)
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "curves.png", "more.svg"}  # nothing half-written


def test_seeds_are_averaged_and_missing_values_left_out(tmp_path: Path) -> None:
    both = [row("mcm", 1, 2.0, seed=0), row("mcm", 1, 4.0, seed=1), row("mcm", 2, None)]
    middle = Row(
        teacher="one", method="mcm", sampler="x", steps=1, guidance=1, n=4, fvd=3.0, intervals={"fvd": [1.0, 6.0]}
    )
    files = [
        step_curves(tmp_path / f"{name}.svg", rows, ("fvd",)).read_text()
        for name, rows in (("both", both), ("middle", [middle, row("mcm", 2, None)]))
    ]
    assert _paths(files[0]) == _paths(files[1])


def test_the_same_numbers_make_the_same_file(tmp_path: Path) -> None:
    rows = [row(method, steps, 10 / steps) for method in ("ddim", "mcm") for steps in (1, 2, 4)]
    first, again = (step_curves(tmp_path / f"{name}.svg", rows, ("fvd",)).read_bytes() for name in "ab")
    assert first == again


def test_what_is_far_off_does_not_press_the_others_into_a_line(tmp_path: Path) -> None:
    def clipsim(method: str, steps: int, value: float) -> Row:
        return Row(teacher="one", method=method, sampler="x", steps=steps, guidance=1, n=4, clipsim=value)

    near = [clipsim(method, steps, 85 + 4 * i + steps) for i, method in enumerate("abc") for steps in (1, 2, 4, 8)]
    heights = []
    for name, rows in (("near", near), ("off", [*near, clipsim("d", 1, 4.0), clipsim("d", 2, 88.0)])):
        svg = step_curves(tmp_path / f"{name}.svg", rows, ("clipsim",)).read_text()
        lines = re.findall(r'<path d="([^"]*)" clip-path[^>]*stroke: #1f77b4', svg)
        ys = [float(y) for y in re.findall(r"[ML] [0-9.]+ ([0-9.]+)", max(lines, key=len))]
        heights.append(max(ys) - min(ys))
    assert heights[1] > 0.8 * heights[0]


def _paths(svg: str) -> list[str]:
    return [line for line in svg.splitlines() if line.strip().startswith('<path d="M')]


def test_a_method_has_one_colour_for_all_teachers(tmp_path: Path) -> None:
    two = [row("lcm", 1, 1.5, teacher="two"), row("mcm", 1, 1.0, teacher="two")]
    rows = [row("ddim", 1, 2.0), row("mcm", 1, 1.0), *two]
    assert method_colours(rows) == {"ddim": "C0", "mcm": "C1", "lcm": "C2"}
    svg = step_curves(tmp_path / "curves.svg", rows, ("fvd",)).read_text()
    markers = [set(re.findall("fill: (#[0-9a-f]{6})", part)) for part in svg.split('<g id="axes_')[1:]]
    colours = {"ddim": "#1f77b4", "mcm": "#ff7f0e", "lcm": "#2ca02c"}  # matplotlib's C0, C1, C2
    seen = [{method for method, colour in colours.items() if colour in part} for part in markers]
    assert seen == [{"ddim", "mcm"}, {"lcm", "mcm"}]


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        step_curves(tmp_path / "curves.svg", [])
