"""Read one picture, as it is meant to be seen, within bounded memory."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mcm.data.files import File, as_file, opened
from mcm.data.report import UnreadableError
from mcm.data.resize import crop_place, fit

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 64_000_000  # larger pictures are refused before decoding: a few bytes can claim gigapixels

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, MemoryError)
_ERRORS += (struct.error, zlib.error, Image.DecompressionBombError)


class UnreadablePicture(UnreadableError):  # noqa: N818
    """A picture that cannot be used; `reason` says why: "truncated or damaged: ..."."""


def probe_picture(path: str | File) -> tuple[int, int]:
    """(H, W) as its header says, before any rotation; nothing is decoded. Raises `UnreadablePicture`."""
    with _opened(as_file(path)) as image:
        return image.height, image.width


def read_picture(
    path: str | File, size: tuple[int, int], crop: str = "center", rng: torch.Generator | None = None
) -> Tensor:
    """Read a picture as float32 (3, H, W) in [-1, 1], cut to the shape of `size` (H, W) and scaled with
    antialiasing.

    EXIF's rotation is applied, transparency is laid on white, 16-bit greys are scaled, of an animation it is
    the first picture. `crop` as in `video.read_clip`. Raises `UnreadablePicture`.
    """
    place = crop_place(crop, rng)
    with _opened(as_file(path)) as image:
        try:
            pixels = torch.from_numpy(_rgb(ImageOps.exif_transpose(image)))
        except _ERRORS as error:
            raise UnreadablePicture(f"truncated or damaged: {error}") from error
    return fit(pixels, size, place)


def decode_picture(data: bytes) -> np.ndarray:
    """The pixels, uint8 (H, W, 3), of a picture file in memory. Raises `UnreadablePicture`."""
    with _header(io.BytesIO(data)) as image:
        try:
            return _rgb(image)
        except _ERRORS as error:
            raise UnreadablePicture(f"truncated or damaged: {error}") from error


@contextmanager
def _opened(path: File) -> Iterator[Image.Image]:
    """The picture, its header read; closed with the file it lies in."""
    if isinstance(path, Path):
        if not path.exists():
            raise UnreadablePicture("no such file")
        if not path.is_file():
            raise UnreadablePicture("not a regular file")
    try:
        stream = opened(path)
    except UnreadableError as error:
        raise UnreadablePicture(error.reason) from error
    with stream, _header(stream) as image:
        yield image


def _header(stream: BinaryIO) -> Image.Image:
    try:
        if not stream.read(1):
            raise UnreadablePicture("empty file")
        stream.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is stricter
            image = Image.open(stream, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise UnreadablePicture(f"too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadablePicture(f"not a picture: expected {', '.join(_FORMATS)}") from error
    except _ERRORS as error:
        raise UnreadablePicture(f"cannot be opened: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UnreadablePicture(
            f"too large: {image.width} x {image.height}, more than {MAX_PIXELS // 10**6} million pixels"
        )
    return image


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3)."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        grey = (np.asarray(image).astype(np.float64).clip(0, 65535) / 257).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, 2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.array(image.convert("RGB"))
