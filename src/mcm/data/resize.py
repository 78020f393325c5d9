"""From any picture size to the model's: crop to the wanted shape, then scale with antialiasing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CROPS = ("center", "random")


def crop_place(crop: str, rng: torch.Generator | None) -> tuple[float, float]:
    """Where the crop lies in the room that is left, (vertical, horizontal) in [0, 1]: (0.5, 0.5) is the
    middle.

    `crop` is "center" or "random"; "random" draws from `rng` and is the middle without one.
    """
    if crop not in CROPS:
        raise ValueError(f"crop is {crop!r}: expected one of {', '.join(CROPS)}")
    if crop == "center" or rng is None:
        return 0.5, 0.5
    vertical, horizontal = torch.rand(2, generator=rng, device=rng.device).tolist()
    return vertical, horizontal


def fit(
    pixels: Tensor, size: tuple[int, int], place: tuple[float, float] = (0.5, 0.5), aspect: float = 1.0
) -> Tensor:
    """Fit a picture into `size`, filling it: nothing is stretched, what stands over is cut off.

    pixels: uint8 (h, w, 3). size: (H, W). place: see `crop_place`. aspect: width / height of one stored
    pixel. Returns float32 (3, H, W) in [-1, 1]. The cut comes first (to within one stored pixel of the exact
    shape), so that only what is kept is scaled and the memory stays bounded whatever the shape of the input.
    """
    height, width = pixels.shape[:2]
    out_height, out_width = size
    wanted = out_width / out_height / aspect  # in stored pixels
    box_height, box_width = height, width
    if width > height * wanted:
        box_width = min(width, max(1, round(height * wanted)))
    else:
        box_height = min(height, max(1, round(width / wanted)))
    top = round(place[0] * (height - box_height))
    left = round(place[1] * (width - box_width))
    x = pixels[top : top + box_height, left : left + box_width].permute(2, 0, 1)[None].float() / 127.5 - 1
    if (box_height, box_width) != (out_height, out_width):
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
    return x[0].clamp_(-1, 1)
