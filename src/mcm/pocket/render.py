"""Rendering by signed distances: every limb is a tapered capsule, every edge is anti-aliased analytically.

All coordinates are fractions of the frame's side, x to the right, y down. Colours are RGB in [0, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mcm.pocket.world import CAMERAS, Spec

PAINT = {
    "red": (0.85, 0.13, 0.15), "green": (0.12, 0.62, 0.22), "blue": (0.13, 0.30, 0.88),
    "yellow": (0.96, 0.82, 0.12), "purple": (0.58, 0.18, 0.68), "white": (0.95, 0.95, 0.95),
}  # fmt: skip
SKIN, HAIR, SHOE = (0.93, 0.72, 0.56), (0.25, 0.15, 0.10), (0.16, 0.14, 0.15)
LIGHT = torch.nn.functional.normalize(torch.tensor([-0.45, -0.6, 0.66]), dim=0)

# (from keypoint, to keypoint, radius at the start, radius at the end, paint), drawn back to front
_LIMBS = (
    (5, 6, 0.040, 0.034, "top"), (6, 7, 0.034, 0.028, "top"), (7, 7, 0.034, 0.034, "skin"),
    (11, 12, 0.056, 0.044, "bottom"), (12, 13, 0.044, 0.036, "bottom"), (13, 13, 0.042, 0.042, "shoe"),
    (8, 9, 0.056, 0.044, "bottom"), (9, 10, 0.044, 0.036, "bottom"), (10, 10, 0.042, 0.042, "shoe"),
    ("chest", "hips", 0.098, 0.078, "top"),
    ("head", "head", 0.098, 0.098, "skin"), ("crown", "crown", 0.082, 0.082, "hair"),
    (2, 3, 0.040, 0.034, "top"), (3, 4, 0.034, 0.028, "top"), (4, 4, 0.034, 0.034, "skin"),
)  # fmt: skip


def _places(keypoints: Tensor) -> dict[int | str, Tensor]:
    """Points (B, T, 2) that limbs join: the 18 keypoints and four more that follow from them."""
    points: dict[int | str, Tensor] = {i: keypoints[..., i, :] for i in range(18)}
    hips = (points[8] + points[11]) / 2
    head = (points[16] + points[17]) / 2 + 0.5 * (points[0] - (points[16] + points[17]) / 2)
    spine = points[1] - hips
    points["hips"] = hips
    points["chest"] = hips + spine * 0.80
    points["head"] = head
    points["crown"] = head + spine * 0.14 - 0.25 * (points[0] - head)
    return points


def _capsule(grid: Tensor, a: Tensor, b: Tensor, ra: float, rb: float) -> tuple[Tensor, Tensor]:
    """Signed distance (F, H, W) to tapered capsules a -> b, and the surface normal (F, H, W, 3) inside them."""
    pa = grid - a[:, None, None]
    ba = (b - a)[:, None, None]
    along = ((pa * ba).sum(-1) / (ba * ba).sum(-1).clamp(min=1e-9)).clamp(0, 1)
    radius = ra + along * (rb - ra)
    across = pa - along[..., None] * ba
    distance = across.norm(dim=-1)
    flat = across / radius[..., None]
    depth = (1 - flat.square().sum(-1)).clamp(min=0).sqrt()
    return distance - radius, torch.cat([flat, depth[..., None]], dim=-1)


def _over(canvas: Tensor, paint: Tensor, coverage: Tensor) -> Tensor:
    return canvas + (paint - canvas) * coverage[..., None]


def _shade(paint: Tensor, normal: Tensor, style: str) -> Tensor:
    """Colour of a surface by style: toon is flat, plain and studio softly shaded, relief strongly lit and glossy."""
    if style == "toon":
        return paint.expand(normal.shape)
    lambert = (normal @ LIGHT).clamp(min=0)[..., None]
    if style == "relief":
        gloss = lambert.pow(24) * 0.55
        return (paint * (0.28 + 0.9 * lambert) + gloss).clamp(0, 1)
    return paint * (0.80 + 0.22 * lambert)


def _scenery(specs: list[Spec], moments: Tensor, size: int, style: str) -> Tensor:
    """Backgrounds (B, T, H, W, 3) at moments (B, T), each scene one place seen from about one spot.

    A panning camera moves them by 0.028 of a frame's side a frame at 8 frames.
    """
    pixel = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    y = pixel[:, None].expand(size, size)
    frames = moments.shape[1]
    out = torch.empty(len(specs), frames, size, size, 3)
    for i, s in enumerate(specs):
        rng = np.random.default_rng(s.seed)
        direction = (0, -1, 1)[CAMERAS.index(s.camera)]
        pan = direction * 0.224 * moments[i] + float(rng.uniform(-0.03, 0.03))
        x = pixel[None, None, :] + pan[:, None, None] + torch.zeros(frames, size, size)
        out[i] = _SCENERY[s.scene](x, y.expand(frames, size, size), size, style)
    return out


def _soft(distance: Tensor, size: int) -> Tensor:
    """Coverage of the half-space distance < 0, one pixel wide."""
    return (0.5 - distance * size).clamp(0, 1)


def _mix(a: tuple[float, ...], b: tuple[float, ...], amount: Tensor, style: str) -> Tensor:
    """A gradient between two colours; toon has three flat bands instead."""
    if style == "toon":
        amount = (amount * 2.999).floor() / 2
    return torch.tensor(a) + (torch.tensor(b) - torch.tensor(a)) * amount[..., None]


def _repeat(x: Tensor, period: float) -> Tensor:
    return (x / period - (x / period).floor() - 0.5) * period


def _ball(canvas: Tensor, dx: Tensor, dy: Tensor, radius: float, colour: tuple[float, ...], size: int, style: str):
    distance = (dx.square() + dy.square()).sqrt() - radius
    depth = (1 - (dx.square() + dy.square()) / radius**2).clamp(min=0).sqrt()
    normal = torch.stack([dx / radius, dy / radius, depth], dim=-1)
    return _over(canvas, _shade(torch.tensor(colour), normal, style), _soft(distance, size))


def _park(x: Tensor, y: Tensor, size: int, style: str) -> Tensor:
    sky = _mix((0.42, 0.70, 0.95), (0.80, 0.91, 0.98), (y / 0.7).clamp(0, 1), style)
    hills = 0.60 + 0.04 * torch.sin(x * 2 * np.pi) + 0.02 * torch.sin(x * 4 * np.pi)
    canvas = _over(sky, _mix((0.38, 0.66, 0.36), (0.32, 0.58, 0.30), ((y - 0.55) * 3).clamp(0, 1), style),
                   _soft(hills - y, size))  # fmt: skip
    tree = _repeat(x, 0.5)
    trunk = torch.maximum(tree.abs() - 0.022, torch.maximum(0.36 - y, y - 0.74))
    canvas = _over(canvas, torch.tensor((0.42, 0.28, 0.16)), _soft(trunk, size))
    canvas = _ball(canvas, tree, y - 0.33, 0.125, (0.13, 0.44, 0.18), size, style)
    return _over(canvas, _mix((0.47, 0.74, 0.33), (0.30, 0.56, 0.22), ((y - 0.74) * 4).clamp(0, 1), style),
                 _soft(0.74 - y, size))  # fmt: skip


def _beach(x: Tensor, y: Tensor, size: int, style: str) -> Tensor:
    canvas = _mix((0.98, 0.80, 0.58), (1.0, 0.93, 0.76), (y / 0.45).clamp(0, 1), style)
    canvas = _ball(canvas, _repeat(x, 1.0), y - 0.22, 0.10, (1.0, 0.62, 0.22), size, style)
    sea = _mix((0.05, 0.45, 0.62), (0.22, 0.68, 0.76), ((y - 0.45) * 4).clamp(0, 1), style)
    canvas = _over(canvas, sea, _soft(0.45 - y, size))
    for row, shift in ((0.53, 0.0), (0.62, 0.11)):
        ripple = (y - row - 0.008 * torch.sin(x * 8 * np.pi)).abs() - 0.008
        crest = torch.maximum(ripple, _repeat(x + shift, 0.25).abs() - 0.07)
        canvas = _over(canvas, torch.tensor((0.80, 0.93, 0.95)), _soft(crest, size))
    shore = 0.71 + 0.012 * torch.sin(x * 4 * np.pi)
    return _over(canvas, _mix((0.93, 0.83, 0.60), (0.82, 0.69, 0.45), ((y - 0.7) * 3.5).clamp(0, 1), style),
                 _soft(shore - y, size))  # fmt: skip


def _street(x: Tensor, y: Tensor, size: int, style: str) -> Tensor:
    canvas = _mix((0.62, 0.60, 0.60), (0.52, 0.49, 0.48), (y / 0.75).clamp(0, 1), style)
    joint = _repeat(x, 0.5).abs()
    canvas = _over(canvas, torch.tensor((0.35, 0.31, 0.31)), _soft(0.238 - joint, size))
    for row in (0.14, 0.36, 0.58):
        window = torch.maximum(_repeat(x, 0.25).abs() - 0.055, (y - row).abs() - 0.065)
        canvas = _over(canvas, torch.tensor((0.28, 0.36, 0.47)), _soft(window, size))
    canvas = _over(canvas, torch.tensor((0.74, 0.73, 0.71)), _soft(0.75 - y, size))
    canvas = _over(canvas, _mix((0.30, 0.30, 0.32), (0.22, 0.22, 0.24), ((y - 0.8) * 5).clamp(0, 1), style),
                   _soft(0.80 - y, size))  # fmt: skip
    dash = torch.maximum(_repeat(x, 0.25).abs() - 0.07, (y - 0.965).abs() - 0.012)
    return _over(canvas, torch.tensor((0.90, 0.87, 0.70)), _soft(dash, size))


def _night(x: Tensor, y: Tensor, size: int, style: str) -> Tensor:
    canvas = _mix((0.06, 0.06, 0.20), (0.24, 0.15, 0.36), (y / 0.75).clamp(0, 1), style)
    for period, row, shift in ((0.25, 0.10, 0.0), (0.5, 0.24, 0.13), (0.25, 0.38, 0.07), (0.5, 0.05, 0.35)):
        star = (_repeat(x + shift, period).square() + (y - row).square()).sqrt() - 0.011
        canvas = _over(canvas, torch.tensor((0.92, 0.92, 0.80)), _soft(star, size))
    canvas = _ball(canvas, _repeat(x - 0.3, 1.0), y - 0.2, 0.085, (0.93, 0.92, 0.78), size, style)
    return _over(canvas, _mix((0.17, 0.21, 0.30), (0.09, 0.12, 0.18), ((y - 0.75) * 4).clamp(0, 1), style),
                 _soft(0.75 - y, size))  # fmt: skip


_SCENERY = {"park": _park, "beach": _beach, "street": _street, "night": _night}


def render(specs: list[Spec], keypoints: Tensor, style: str, size: int, moments: Tensor | None = None) -> Tensor:
    """Paint clips.

    Args:
        keypoints: (B, T, 18, 2) as fractions of the frame's side.
        moments: (B, T), when the frames are, in shares of the clip; default from its beginning on, evenly.
        style: "plain", "studio", "toon" or "relief".

    Returns:
        Video (B, T, H, W, 3) in [0, 1].
    """
    if moments is None:
        frames = keypoints.shape[1]
        moments = (torch.arange(frames, dtype=torch.float32) / frames).expand(len(specs), -1)
    canvas = _scenery(specs, moments, size, style)
    if style == "relief":  # scenery steps back, the figure stands out
        canvas = canvas * 0.72 + 0.28 * canvas.mean(dim=-1, keepdim=True)
    for i, s in enumerate(specs):
        _paint_figure(canvas[i], s, _places(keypoints[i]), style)
    return canvas.clamp_(0, 1)


def _paint_figure(canvas: Tensor, s: Spec, points: dict[int | str, Tensor], style: str) -> None:
    """Paint one clip's figure into its canvas (T, H, W, 3), limb by limb, touching only each limb's own window."""
    size = canvas.shape[1]
    pixel = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    grid = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), dim=-1)
    aside = (grid[..., 0] - points["hips"][:, None, None, 0]) / 0.17
    spread = aside.square() + ((grid[..., 1] - 0.955) / 0.03).square()
    canvas *= (1 - 0.32 * (1.4 - spread).clamp(0, 1))[..., None]
    fixed = {"skin": SKIN, "hair": HAIR, "shoe": SHOE, "top": PAINT[s.top], "bottom": PAINT[s.bottom]}
    for start, end, ra, rb, paint in _LIMBS:
        a, b = points[start], points[end]
        ends = torch.cat([a, b])
        reach = max(ra, rb) * s.height + 3 / 64
        low = ((ends.amin(0) - reach) * size).floor().clamp(0, size).long().tolist()
        high = ((ends.amax(0) + reach) * size).ceil().clamp(0, size).long().tolist()
        if low[0] >= high[0] or low[1] >= high[1]:
            continue
        window = canvas[:, low[1] : high[1], low[0] : high[0]]
        distance, normal = _capsule(grid[None, low[1] : high[1], low[0] : high[0]], a, b, ra * s.height, rb * s.height)
        under: Tensor = window
        if style == "toon":
            under = _over(under, torch.tensor((0.05, 0.04, 0.07)), _soft(distance - 1.25 / 64, size))
        elif style != "relief":  # a faint contact line keeps limbs apart where they overlap
            under = under * (1 - 0.22 * _soft(distance - 0.8 / 64, size))[..., None]
        colour = _shade(torch.tensor(fixed[paint]), normal, style)
        window.copy_(_over(under, colour, _soft(distance, size)))
