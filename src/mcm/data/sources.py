"""Where clips, pictures and prompts come from: `VideoFolder`, `PictureFolder`, `Prompts`; see `listing` for the places.

All are map-style (len, index). What cannot be used is counted and named with its reason in `report`, both
what the first look finds and what turns out only when it is read; a source with nothing usable is a
`UserError` before any training.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, overload

import torch
from torch import Tensor

from mcm.data.captions import Entry
from mcm.data.listing import items
from mcm.data.readers import ClipReader, PictureReader, Reader, check_entry, wanted
from mcm.data.remote import is_url
from mcm.data.report import SourceReport, UnreadableError
from mcm.data.resize import CROPS
from mcm.data.tables import TABLE_SUFFIXES, read_table
from mcm.errors import UserError, one_of

CHECKS = ("probe", "decode")
_PROMPTS_LAYOUT = "a text file with one prompt a line, or a .csv, .jsonl or .parquet with a prompt column"
_log = logging.getLogger("mcm")

Item = TypeVar("Item")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Clip:
    """video: float (3, T, H, W) in [-1, 1]. name: the file, relative to its source."""

    video: Tensor
    caption: str
    name: str


@dataclass(frozen=True)
class Picture:
    """image: float (3, H, W) in [-1, 1]. name: the file, relative to its source."""

    image: Tensor
    caption: str
    name: str


class _Folder(ABC, Generic[Item]):
    """What the two kinds of folder share: the first look, the report, and what happens when reading fails
    later.
    """

    def __init__(
        self,
        path: str | Path,
        reader: Reader,
        check: str,
        need_captions: bool,
        progress: Progress | None,
    ) -> None:
        if reader.crop not in CROPS:
            raise one_of("crop", reader.crop, CROPS)
        if check not in CHECKS:
            raise one_of("check", check, CHECKS)
        found, faults = items(path, wanted(reader))
        path = path if is_url(str(path)) else Path(path).expanduser()
        self.report = SourceReport(len(found) + len(faults), len(found) + len(faults), [], reader.what, str(path))
        for name, reason in faults:
            self.report.drop(name, reason)
        self._entries: list[Entry] = []
        self._broken: set[int] = set()
        for k, entry in enumerate(found):
            try:
                check_entry(entry, need_captions)
                reader.look(entry)
                if check == "decode":
                    self._read(entry, None)
                self._entries.append(entry)
            except UnreadableError as error:
                self.report.drop(entry.name, error.reason)
            if progress is not None:
                progress(k + 1, len(found))
        if not self._entries:
            raise self.report.nothing(reader.layout)

    @abstractmethod
    def _read(self, entry: Entry, rng: torch.Generator | None) -> Item:
        """Decode one item; raises `UnreadableError`."""

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int, rng: torch.Generator | None = None) -> Item:
        """Item `index`. With `rng` its start and crop are drawn, else they are the middle.

        If it cannot be read after all, the next one that can takes its place, the same one every time; the
        report grows and a warning is logged, once for each file. Raises `UserError` when none can be read any
        more.
        """
        count = len(self._entries)
        if not -count <= index < count:
            raise IndexError(f"item {index} of {count}")
        state = rng.get_state() if rng is not None else None
        for k in range(count):
            if rng is not None and state is not None:
                rng.set_state(state)  # what is drawn must not depend on whether the fault was known already
            item = self._try((index + k) % count, rng)
            if item is not None:
                return item
        raise self.report.nothing("at least one file that can be read")

    def read(self, index: int, rng: torch.Generator | None = None) -> Item:
        """The same as indexing, with an `rng`."""
        return self.__getitem__(index, rng)

    def __iter__(self) -> Iterator[Item]:
        """Every item that can be read, once; none takes another's place. Start and crop are the middle."""
        for index in range(len(self._entries)):
            item = self._try(index, None)
            if item is not None:
                yield item

    def _try(self, index: int, rng: torch.Generator | None) -> Item | None:
        if index in self._broken:
            return None
        entry = self._entries[index]
        try:
            return self._read(entry, rng)
        except UnreadableError as error:
            self._broken.add(index)
            self.report.drop(entry.name, error.reason)
            _log.warning("%s: left out %s: %s", self.report.where, entry.name, error.reason)
            return None


class VideoFolder(_Folder[Clip]):
    """The films under a folder, in tars, or those that a table names, as clips.

    path: a folder, searched with its subfolders; captions stand in a .txt or .json beside each film, or in a
    captions or metadata .csv / .jsonl / .parquet in the folder; or the path of such a table; or WebDataset tars (one,
    shards-{0000..0009}.tar, a folder of them); or a URL of any of these (s3://, hf:// ...). frames, size (H, W), stride
    or fps: see `video.read_clip`. crop: "center", or "random" (drawn from the rng given to `read`). check:
    "probe" looks at each header, "decode" also decodes a clip of each film, which takes longer and finds all
    damage. need_captions: without, a film that has none gets "". progress(done, total) is called after each
    file.
    """

    def __init__(
        self,
        path: str | Path,
        frames: int,
        size: tuple[int, int],
        stride: int | None = None,
        fps: float | None = None,
        *,
        crop: str = "center",
        check: str = "probe",
        need_captions: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.frames, self.size = frames, size
        self.reader = ClipReader(frames, size, stride, fps, crop)
        super().__init__(path, self.reader, check, need_captions, progress)

    def _read(self, entry: Entry, rng: torch.Generator | None) -> Clip:
        return Clip(self.reader.read(entry, rng), entry.caption or "", entry.name)


class PictureFolder(_Folder[Picture]):
    """The pictures under a folder, or those that a table names; see `VideoFolder`. A picture without caption
    has "".
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        *,
        crop: str = "center",
        check: str = "probe",
        need_captions: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.size = size
        self.reader = PictureReader(size, crop)
        super().__init__(path, self.reader, check, need_captions, progress)

    def _read(self, entry: Entry, rng: torch.Generator | None) -> Picture:
        return Picture(self.reader.read(entry, rng), entry.caption or "", entry.name)


class Prompts(Sequence[str]):
    """Prompts from a text file (one a line; empty lines do not count), a .csv or .jsonl table, or a list."""

    def __init__(self, source: str | Path | Sequence[str]) -> None:
        if isinstance(source, (str, Path)):
            path = Path(source).expanduser()
            rows, where = _prompt_rows(path), str(path)
        else:
            rows = [(f"prompt {k}", text, "no prompt: it is empty") for k, text in enumerate(source, 1)]
            where = "prompts"
        self.report = SourceReport(len(rows), len(rows), [], "prompts", where)
        self._prompts: list[str] = []
        for name, text, fault in rows:
            said = " ".join((text or "").split())
            if said:
                self._prompts.append(said)
            else:
                self.report.drop(name, fault)
        if not self._prompts:
            faults = f": {'; '.join(self.report.lines()[:3])}" if rows else ""
            raise UserError(f"{where}: no prompts in it{faults}; expected {_PROMPTS_LAYOUT}")

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._prompts[index]


def _prompt_rows(path: Path) -> list[tuple[str, str | None, str]]:
    """(name, prompt or None, why there is none) for each."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"the prompts file {path} {kind}: expected {_PROMPTS_LAYOUT}")
    if path.suffix.lower() in TABLE_SUFFIXES:
        return [(row.where, row.caption, row.fault or "") for row in read_table(path, str(path), need_file=False)]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16: save it as UTF-8")
    rows: list[tuple[str, str | None, str]] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            rows.append((f"line {number}", None, "prompt not UTF-8: save the file as UTF-8"))
            continue
        if text.strip():
            rows.append((f"line {number}", text, ""))
    return rows
