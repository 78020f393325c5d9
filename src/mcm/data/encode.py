"""Write films and other files so that nothing half-written ever stands under a final name."""

from __future__ import annotations

import io
import math
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mcm.errors import UserError, nearest

_SUFFIXES = (".mp4", ".gif", ".webp", ".apng")


def as_pixels(video: Tensor) -> Tensor:
    """float (3, T, H, W) in [-1, 1] -> uint8 (T, H, W, 3), or float (3, H, W) -> uint8 (H, W, 3); values are
    clamped.
    """
    if video.shape[0] != 3 or video.ndim not in (3, 4) or not video.is_floating_point():
        raise ValueError(
            f"expected float (3, T, H, W) or (3, H, W), got {video.dtype} of shape {tuple(video.shape)}"
        )
    pixels = video.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return pixels.movedim(0, -1).contiguous()


def write_bytes(path: str | Path, data: bytes | memoryview) -> Path:
    """Write a file in one piece: under a temporary name in the same folder first, then renamed.

    The folder is made where it is missing. Raises `UserError` (one line) where the folder or the disk will
    not have it; nothing is left behind then.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; choose a folder with room that can be written"
        ) from error
    return path


def write_video(path: str | Path, video: np.ndarray | Tensor, fps: float) -> Path:
    """Write a film; the suffix says how: .mp4 (H.264, yuv420p, crf 18), or .gif, .webp, .apng, which loop.

    video: uint8 (T, H, W, 3) (see `as_pixels`). fps: frames a second. An odd height or width is padded by one
    row or column in .mp4, whose colours come in blocks of two; a GIF's clock ticks in 1/100 s, and frames are
    timed so that the whole film keeps its length; .gif, .webp and .apng join frames that do not change.

    Returns the path. Raises `UserError` for an unknown suffix or an unwritable path.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    pixels = video.detach().cpu().numpy() if isinstance(video, Tensor) else np.asarray(video)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(f"expected uint8 (T, H, W, 3), got {pixels.dtype} of shape {pixels.shape}")
    if not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps}: it must be positive")
    if suffix not in _SUFFIXES:
        raise UserError(
            f"cannot write a film as {path.name!r}: expected a name ending in "
            f"{', '.join(_SUFFIXES)}{nearest(suffix, _SUFFIXES)}"
        )
    pixels = np.ascontiguousarray(pixels)
    return write_bytes(path, _mp4(pixels, fps) if suffix == ".mp4" else animation(pixels, fps, suffix))


def _mp4(pixels: np.ndarray, fps: float) -> memoryview:
    odd_height, odd_width = pixels.shape[1] % 2, pixels.shape[2] % 2
    if odd_height or odd_width:
        pixels = np.pad(pixels, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")
    codec, options = "libx264", {"crf": "18"}
    if codec not in av.codecs_available:  # a PyAV built without x264
        codec, options = "mpeg4", {"q:v": "2"}
    file = io.BytesIO()  # films are short; a full disk is then met in one place, write_bytes
    # the index comes first, so that a browser can start at once; room for it: 64 bytes a frame
    index = {"moov_size": str(4096 + 64 * len(pixels))}
    with av.open(file, "w", format="mp4", options=index) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getbuffer()


def animation(pixels: np.ndarray, fps: float, suffix: str = ".webp") -> memoryview:
    """The bytes of a looping ".gif", ".webp" or ".apng" of uint8 (T, H, W, 3), as `write_video` writes them."""
    tick = 10 if suffix == ".gif" else 1  # milliseconds
    ends = [round((k + 1) * 1000 / fps / tick) * tick for k in range(len(pixels))]
    held = [max(tick, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    pictures = [Image.fromarray(picture) for picture in pixels]
    if suffix == ".gif":  # a palette of its own for each frame
        pictures = [picture.quantize(256, dither=Image.Dither.NONE) for picture in pictures]
    options = {
        ".gif": {"format": "GIF", "optimize": False},
        ".webp": {"format": "WEBP", "quality": 90},
        ".apng": {"format": "PNG"},
    }[suffix]
    file = io.BytesIO()
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=held, loop=0, **options)
    return file.getbuffer()
