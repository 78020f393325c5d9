"""Films whose frames carry their own number, in black and white blocks that survive any codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

Maker = Callable[..., Path]


def numbered(k: int, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3): the 8 bits of k as a 2 x 4 pattern of blocks, red where the row is the lower one."""
    bits = np.array([(k >> bit) & 1 for bit in range(8)]).reshape(2, 4)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    grey = 20 + 215 * bits[rows][:, columns]
    return np.repeat(grey[:, :, None], 3, 2).astype(np.uint8)


def numbers_of(clip: Tensor) -> list[int]:
    """The numbers of the frames of a clip, float (3, T, H, W)."""
    frames, height, width = clip.shape[1:]
    found = []
    for t in range(frames):
        number = 0
        for bit in range(8):
            y, x = int((bit // 4 + 0.5) * height / 2), int((bit % 4 + 0.5) * width / 4)
            number += int(clip[:, t, y - 1 : y + 2, x - 1 : x + 2].mean() > 0) << bit
        found.append(number)
    return found


def _make(
    path: Path,
    codec: str = "libx264",
    frames: int = 60,
    size: tuple[int, int] = (32, 64),
    fps: float | Fraction = 30,
    pixels: str = "yuv420p",
    gop: int = 12,
    times: Sequence[float] | None = None,
    tick: Fraction | None = None,
    rotation: int | None = None,
    aspect: Fraction | None = None,
    container: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a numbered film. times: seconds of each frame, else evenly at fps. size: (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = gop
        if tick is not None:
            stream.codec_context.time_base = tick
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(k, *size), format="rgb24")
            if times is not None and tick is not None:
                frame.pts, frame.time_base = round(Fraction(times[k]) / tick), tick
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.fixture
def make_film() -> Maker:
    return _make


@pytest.fixture
def frame_numbers() -> Callable[[Tensor], list[int]]:
    return numbers_of


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
