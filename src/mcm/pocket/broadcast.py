"""The broadcast domain: what web video does to a clean film.

In this order: blur, low contrast, a watermark, sensor noise, and a real codec (H.264 for half of the clips, JPEG
frame by frame for the other half). Everything is a function of the clip's seed.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# five letters of 3 x 5 dots: V I D E O
_GLYPHS = ("101101101101010", "111010010010111", "110101101101110", "111100110100111", "111101101101111")


def watermark(size: int) -> Tensor:
    """The station's mark, (H, W) with 1 where a letter is; the same in every clip, as web video has it.

    Frames narrower than the mark show the middle of it.
    """
    dots = torch.zeros(5, 19)
    for i, glyph in enumerate(_GLYPHS):
        dots[:, 4 * i : 4 * i + 3] = torch.tensor([float(c) for c in glyph]).view(5, 3)
    scale = max(1, round(size / 32))
    mark = dots.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    cut = max(0, mark.shape[1] - size)
    mark = mark[:, cut // 2 : mark.shape[1] - (cut - cut // 2)]
    out = torch.zeros(size, size)
    top, left = round(size * 0.44), (size - mark.shape[1]) // 2
    out[top : top + mark.shape[0], left : left + mark.shape[1]] = mark
    return out


def broadcast(video: Tensor, seeds: list[int]) -> Tensor:
    """Degrade clips (B, T, H, W, 3) in [0, 1]; `seeds` holds one number per clip. Returns the same shape."""
    size = video.shape[2]
    mark = watermark(size)[None, :, :, None]
    out = torch.empty_like(video)
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 7])
        clip = _blur(video[i], float(rng.uniform(0.6, 0.9)) * size / 64)
        contrast = float(rng.uniform(0.60, 0.72))
        clip = 0.5 + (clip - 0.5) * contrast + float(rng.uniform(-0.03, 0.05))
        clip = clip + mark * 0.30 * (0.92 - clip)
        noise = torch.from_numpy(rng.standard_normal(clip.shape, dtype=np.float32))
        pixels = (clip + 0.015 * noise).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        codec = through_h264 if rng.random() < 0.5 else through_jpeg
        quality = int(rng.integers(26, 31)) if codec is through_h264 else int(rng.integers(45, 65))
        out[i] = torch.from_numpy(codec(pixels, quality)).float() / 255
    return out


def _blur(clip: Tensor, sigma: float) -> Tensor:
    reach = max(1, int(3 * sigma + 0.5))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, -1)
    x = F.pad(clip.permute(0, 3, 1, 2), (reach,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, taps[:, :, None, :], groups=3), taps[:, :, :, None], groups=3)
    return x.permute(0, 2, 3, 1)


def through_h264(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode (T, H, W, 3) uint8 with x264 at a constant rate factor (0 best, 51 worst)."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = pixels.shape[1:3]
    encoder.pix_fmt, encoder.framerate, encoder.time_base = "yuv420p", Fraction(8), Fraction(1, 8)
    encoder.options = {"crf": str(quality), "preset": "veryfast", "tune": "zerolatency", "threads": "1"}
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    frames: list[np.ndarray] = []
    pending = [av.VideoFrame.from_ndarray(f, format="rgb24").reformat(format="yuv420p") for f in pixels]
    for number, frame in enumerate([*pending, None]):
        if frame is not None:
            frame.pts = number
        for packet in encoder.encode(frame):
            frames += [f.to_ndarray(format="rgb24") for f in decoder.decode(packet)]
    frames += [f.to_ndarray(format="rgb24") for f in decoder.decode(None)]
    return np.stack(frames)


def through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode every frame of (T, H, W, 3) uint8 as JPEG at a quality from 1 to 95."""
    out = np.empty_like(pixels)
    for i, frame in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        out[i] = np.asarray(Image.open(buffer).convert("RGB"))
    return out
