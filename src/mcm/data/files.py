"""A file that may lie on the disk (a `Path`), inside a tar, or behind a URL (`Stored`): opened alike, read lazily."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO, cast

from mcm.data.report import UnreadableError


class Stored(ABC):
    """A file that has no path of its own on this machine's disk."""

    name: str  # with its suffix, for a person and for what tells formats by their suffix

    @abstractmethod
    def open(self) -> BinaryIO:
        """A seekable stream of its bytes, to be closed by the caller. Raises `UnreadableError`."""


File = Path | Stored


class Missing(Stored):
    """A file that something names, but that is not there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self) -> BinaryIO:
        raise UnreadableError("no such file")


def as_file(place: str | File) -> File:
    """A path that is given as text, or what is a file already."""
    return Path(place) if isinstance(place, str) else place


def opened(file: File) -> BinaryIO:
    """A seekable stream of the bytes of `file`, to be closed by the caller. Raises `UnreadableError`."""
    if isinstance(file, Stored):
        return file.open()
    try:
        return open(file, "rb")
    except FileNotFoundError as error:
        raise UnreadableError("no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UnreadableError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error


def part(stream: BinaryIO, name: str, offset: int, size: int) -> BinaryIO:
    """The `size` bytes of `stream` from `offset` on as a stream of their own, which owns `stream` and closes it."""
    return cast(BinaryIO, io.BufferedReader(_Part(stream, name, offset, size)))


class _Part(io.RawIOBase):
    def __init__(self, stream: BinaryIO, name: str, offset: int, size: int) -> None:
        self.name = name  # FFmpeg tells raw streams (.h264, .dv) by their suffix
        self._stream, self._offset, self._size, self._at = stream, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError(f"seek to {origin + offset}: before the first byte")
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._stream.seek(self._offset + self._at)
        data = self._stream.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
