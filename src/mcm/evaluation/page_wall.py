"""The video wall of a report's page: rows prompts, columns systems and steps, all inside the page as data: URIs."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mcm.evaluation.figures import in_steps, note, text

WALL_BYTES = 3_000_000  # of encoded films and stills, 4 MB as base64
ENLARGED = 2  # prompts whose frames are shown enlarged
ACROSS = 8  # clips side by side, two systems of four steps: what a screen and a sheet of paper hold


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A clip of a row, encoded: `film` an animated WebP of width x height pixels, `still` one frame as WebP."""

    teacher: str
    method: str
    steps: int
    prompt: str
    seed: int
    film: bytes
    still: bytes
    width: int
    height: int

    @property
    def size(self) -> int:
        """Bytes in the page, where the still may stand twice: for readers who want no motion, and enlarged."""
        return len(self.film) + 2 * len(self.still)


Column = tuple[str, str, int]  # teacher, method, steps
Prompt = tuple[str, int]  # with its seed


def fitting(shown: Sequence[Shown], limit: int) -> dict[Prompt, dict[Column, Shown]]:
    """The clips by prompt and column: as many whole prompts as `limit` bytes hold, of the first at least a part."""
    lines: dict[Prompt, dict[Column, Shown]] = {}
    for one in shown:
        lines.setdefault((one.prompt, one.seed), {})[one.teacher, one.method, one.steps] = one
    kept: dict[Prompt, dict[Column, Shown]] = {}
    left = limit
    for prompt, line in lines.items():
        if sum(one.size for one in line.values()) <= left:
            kept[prompt] = line
            left -= sum(one.size for one in line.values())
            continue
        if not kept:
            part: dict[Column, Shown] = {}
            for column, one in line.items():
                if one.size <= left:
                    part[column] = one
                    left -= one.size
            if part:
                kept[prompt] = part
        break
    return kept


Lines = Mapping[Prompt, Mapping[Column, Shown]]


def films(lines: Lines, offered: int, limit: int) -> list[str]:
    """What there is to say of the looping clips that fitted of those offered, and a table of them for each teacher."""
    count = sum(len(line) for line in lines.values())
    words = "Looping clips of the first prompts: across, the systems and their steps with the same seeds."
    if count < offered:
        words += f" Shown are {count} of {offered} clips: the page is held to {limit * 4 / 3e6:.2g} MB of pictures."
    return [note(words), *_walls(lines, "wall", _film)]


def stills(lines: Lines) -> list[str]:
    """One frame of each of the first clips, enlarged."""
    few = dict(list(lines.items())[:ENLARGED])
    words = "The middle frame of each clip, enlarged without smoothing to show what the network drew."
    return [note(words), *_walls(few, "wall frames", _still)] if few else []


def _walls(lines: Lines, kind: str, cell: Callable[[Shown], str]) -> list[str]:
    """Tables for each teacher: rows prompts, columns systems and steps."""
    every = list(dict.fromkeys(column for line in lines.values() for column in line))
    tables = []
    for teacher in dict.fromkeys(teacher for teacher, _, _ in every):
        parts = _parted([column for column in every if column[0] == teacher])
        for number, columns in enumerate(parts, 1):
            part = f", part {number} of {len(parts)}" if len(parts) > 1 else ""
            caption = f"Clips of <bdi>{text(teacher)}</bdi> and its students{part}"
            tables.append(_wall(lines, kind, cell, columns, caption))
    return tables


def _parted(columns: Sequence[Column]) -> list[list[Column]]:
    """Columns of one teacher in as many parts as `ACROSS` asks for; the steps of a system stay together if they can."""
    systems: dict[str, list[Column]] = {}
    for column in columns:
        systems.setdefault(column[1], []).append(column)
    parts: list[list[Column]] = []
    for own in systems.values():
        for start in range(0, len(own), ACROSS):
            few = own[start : start + ACROSS]
            if parts and len(parts[-1]) + len(few) <= ACROSS:
                parts[-1] += few
            else:
                parts.append(few)
    return parts


def _wall(lines: Lines, kind: str, cell: Callable[[Shown], str], columns: Sequence[Column], caption: str) -> str:
    head = "".join(
        f'<th scope="col"><bdi>{text(method)}</bdi><br>{in_steps(steps)}</th>' for _, method, steps in columns
    )
    body = "".join(
        f'<tr><th scope="row"><bdi>{text(prompt)}</bdi> <span class="ends">seed {seed}</span></th>'
        + "".join(f"<td>{cell(line[column]) if column in line else '–'}</td>" for column in columns)
        + "</tr>\n"
        for (prompt, seed), line in lines.items()
        if any(column in line for column in columns)
    )
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{caption}</caption>'
        f'<thead><tr><th scope="col">prompt</th>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _film(one: Shown) -> str:
    """The looping film; its still for readers who asked for less motion."""
    alt = text(f"{one.method} in {in_steps(one.steps)}: {one.prompt}")
    return (
        f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{_data(one.still)}">'
        f'<img src="{_data(one.film)}" width="{one.width}" height="{one.height}" alt="{alt}"></picture>'
    )


def _still(one: Shown) -> str:
    alt = text(f"one frame of {one.method} in {in_steps(one.steps)}: {one.prompt}")
    return f'<img src="{_data(one.still)}" width="{one.width}" height="{one.height}" alt="{alt}">'


def _data(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode('ascii')}"
