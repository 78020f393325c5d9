"""The first clips of every row, encoded as they pass, for the video wall of a report's page."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from mcm.data.encode import animation, as_pixels
from mcm.evaluation.page_wall import WALL_BYTES, Shown

FILM_SIDE, STILL_SIDE = 256, 512  # longest sides in pixels; larger clips are reduced
LOSSLESS = 128 * 128  # stills of at most so many pixels keep every one as it was


class Wall:
    """Takes clips while a row is measured and keeps the encoded first ones of each row, never the clips themselves.

    clips: how many of each row. A row takes no more when what it holds reaches the size of a whole wall.
    """

    def __init__(self, clips: int = 6) -> None:
        self.clips, self.shown = clips, list[Shown]()

    def add(
        self, videos: Tensor, prompts: Sequence[str], seed: int, fps: float, teacher: str, method: str, steps: int
    ) -> float:
        """Offer the next clips of a row, float (B, 3, T, H, W) in [-1, 1], with their prompts and the row's first seed.

        Returns the seconds that it took, which are none of the model's.
        """
        begun = time.monotonic()
        have = sum((one.teacher, one.method, one.steps) == (teacher, method, steps) for one in self.shown)
        for k, (video, prompt) in enumerate(zip(videos[: max(0, self.clips - have)], prompts, strict=False), have):
            self.keep(as_pixels(video).numpy(), prompt, seed + k, fps, teacher, method, steps)
        return time.monotonic() - begun

    def keep(
        self, frames: np.ndarray, prompt: str, seed: int, fps: float, teacher: str, method: str, steps: int
    ) -> None:
        """Keep one clip, uint8 (T, H, W, 3), unless its row is full."""
        row = [one for one in self.shown if (one.teacher, one.method, one.steps) == (teacher, method, steps)]
        if len(row) >= self.clips or sum(one.size for one in row) >= WALL_BYTES:
            return
        film = np.stack([np.asarray(_reduced(frame, FILM_SIDE)) for frame in frames])
        still, file = _reduced(frames[len(frames) // 2], STILL_SIDE), io.BytesIO()
        still.save(file, "WEBP", lossless=still.width * still.height <= LOSSLESS, quality=90)
        self.shown.append(
            Shown(
                teacher=teacher, method=method, steps=steps, prompt=prompt, seed=seed,
                film=bytes(animation(film, fps)), still=file.getvalue(), width=film.shape[2], height=film.shape[1],
            )
        )  # fmt: skip


def _reduced(frame: np.ndarray, side: int) -> Image.Image:
    """The frame, uint8 (H, W, 3), with no side longer than `side`."""
    image = Image.fromarray(frame)
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image
