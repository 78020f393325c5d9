"""Films side by side with their labels: a still `contact_sheet` (PNG) and a moving `compare_gif`."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mcm.data.encode import as_pixels, write_bytes, write_video

_PAPER, _INK = (255, 255, 255), (32, 32, 32)
_GAP = 6  # pixels between cells
_SIZE = 14  # of the letters, in pixels

Frames = np.ndarray | Tensor  # a film or one frame; see `_pixels`


def contact_sheet(
    path: str | Path,
    rows: Sequence[Sequence[Frames]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    *,
    frames_per_cell: int = 4,
    scale: float = 1.0,
) -> Path:
    """A PNG with one cell for each film of `rows`; a cell shows `frames_per_cell` of its frames, evenly
    spread.

    A film is float (3, T, H, W) in [-1, 1] or uint8 (T, H, W, 3); a frame is float (3, H, W) or uint8 (H, W,
    3). Rows may be of different lengths and cells of different sizes. scale: screen pixels for one film
    pixel. Returns the path; raises `UserError` where it cannot be written.
    """
    cells = [[_strip(_pixels(film), frames_per_cell, scale) for film in row] for row in rows]
    page = _Page(cells, row_labels, column_labels)
    file = io.BytesIO()
    page.paint(cells).save(file, "PNG", optimize=True)
    return write_bytes(path, file.getbuffer())


def compare_gif(
    path: str | Path,
    grid: Sequence[Sequence[Frames]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    *,
    fps: float = 8.0,
    scale: float = 2.0,
) -> Path:
    """The films of `grid` (rows of columns, as for `contact_sheet`) playing side by side under their labels.

    A film shorter than the longest holds its last frame. The suffix of `path` may be any that `write_video`
    takes.
    """
    films = [[_pixels(film) for film in row] for row in grid]
    length = max((len(film) for row in films for film in row), default=0)

    def cells(k: int) -> list[list[Image.Image]]:
        return [[_scaled(film[min(k, len(film) - 1)], scale) for film in row] for row in films]

    page = _Page(cells(0), row_labels, column_labels)
    return write_video(path, np.stack([np.asarray(page.paint(cells(k))) for k in range(length)]), fps)


class _Page:
    """Where everything stands: columns as wide as their widest cell, rows as high as their highest."""

    def __init__(
        self,
        cells: Sequence[Sequence[Image.Image]],
        row_labels: Sequence[str] | None,
        column_labels: Sequence[str] | None,
    ) -> None:
        columns = max((len(row) for row in cells), default=0)
        if not columns:
            raise ValueError("there is no film to show")
        for what, labels, count in (("row", row_labels, len(cells)), ("column", column_labels, columns)):
            if labels is not None and len(labels) != count:
                raise ValueError(f"{len(labels)} {what} labels for {count} {what}s")
        self.font = ImageFont.load_default(size=_SIZE)
        self.line = round(_SIZE * 1.3)
        widths = [max(row[j].width for row in cells if j < len(row)) for j in range(columns)]
        heights = [max((cell.height for cell in row), default=0) for row in cells]
        # a margin wide enough for the labels, but no wider than a few words a line
        longest = max((self.font.getlength(label) for label in row_labels or []), default=0.0)
        margin = round(min(longest, 12 * _SIZE)) + 1 if row_labels else 0
        self.row_texts = [self._wrap(label, margin) for label in row_labels or []]
        self.column_texts = [
            self._wrap(label, width) for label, width in zip(column_labels or [], widths, strict=False)
        ]
        for i, lines in enumerate(self.row_texts):
            heights[i] = max(heights[i], self.line * len(lines))
        head = self.line * max((len(lines) for lines in self.column_texts), default=0)
        left = _GAP + (margin + _GAP if row_labels else 0)
        top = _GAP + (head + _GAP // 2 if head else 0)
        self.lefts = [left + sum(widths[:j]) + _GAP * j for j in range(columns)]
        self.tops = [top + sum(heights[:i]) + _GAP * i for i in range(len(heights))]
        self.size = (self.lefts[-1] + widths[-1] + _GAP, self.tops[-1] + heights[-1] + _GAP)

    def paint(self, cells: Sequence[Sequence[Image.Image]]) -> Image.Image:
        page = Image.new("RGB", self.size, _PAPER)
        draw = ImageDraw.Draw(page)
        for i, row in enumerate(cells):
            for j, cell in enumerate(row):
                page.paste(cell, (self.lefts[j], self.tops[i]))
        for top, lines in zip(self.tops, self.row_texts, strict=False):
            for k, line in enumerate(lines):
                draw.text((_GAP, top + k * self.line), line, fill=_INK, font=self.font)
        for left, lines in zip(self.lefts, self.column_texts, strict=False):
            for k, line in enumerate(lines):
                draw.text((left, _GAP + k * self.line), line, fill=_INK, font=self.font)
        return page

    def _wrap(self, text: str, width: float) -> list[str]:
        """Lines of at most `width` pixels, broken between words and after hyphens; a part that is too long is cut."""
        lines = [""]
        for part in re.findall(r"[^\s-]*-+|[^\s-]+|\s+", text.strip()):
            longer = lines[-1] + part
            if self.font.getlength(longer.rstrip()) <= width or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(part.lstrip())
            while self.font.getlength(lines[-1].rstrip()) > width and len(lines[-1]) > 1:
                whole, cut = lines[-1], len(lines[-1]) - 1
                while cut > 1 and self.font.getlength(whole[:cut]) > width:
                    cut -= 1
                lines[-1:] = [whole[:cut], whole[cut:]]
        return [line.rstrip() for line in lines if line.strip()]


def _pixels(film: Frames) -> np.ndarray:
    """A film or a frame as uint8 (T, H, W, 3); a frame is a film of one."""
    x = torch.as_tensor(film)
    x = as_pixels(x) if x.is_floating_point() else x.cpu()
    x = x[None] if x.ndim == 3 else x
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[-1] != 3 or 0 in x.shape:
        raise ValueError(f"expected a film or a frame, got {x.dtype} of shape {tuple(x.shape)}")
    return x.numpy()


def _scaled(picture: np.ndarray, scale: float) -> Image.Image:
    image = Image.fromarray(picture)
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _strip(film: np.ndarray, count: int, scale: float) -> Image.Image:
    """`count` frames of a film, the first and the last among them, next to each other."""
    index = np.unique(np.linspace(0, len(film) - 1, max(1, min(count, len(film)))).round().astype(int))
    images = [_scaled(film[i], scale) for i in index]
    width = images[0].width
    strip = Image.new("RGB", (width * len(images) + (len(images) - 1), images[0].height), _PAPER)
    for k, image in enumerate(images):
        strip.paste(image, (k * (width + 1), 0))
    return strip
