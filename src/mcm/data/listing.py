"""Which items a source has: a folder, a table, tars, on this machine or behind a URL."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mcm.data.captions import Entry, shown, sidecar
from mcm.data.files import File, Missing
from mcm.data.remote import is_url, local_path, remote_file, remote_files
from mcm.data.report import UnreadableError
from mcm.data.tables import TABLE_SUFFIXES, TABLES, Row, read_table
from mcm.data.tars import Fault, braces, is_tar, tar_entries
from mcm.errors import UserError

Found = tuple[list[Entry], list[Fault]]


@dataclass(frozen=True)
class Wanted:
    """What is looked for. suffixes: of the files that are items, lower case. media: of all films and pictures, so that
    a tar's captions of pictures are no fault where films are looked for. layout: for error messages.
    """

    suffixes: Collection[str]
    media: Collection[str]
    layout: str


def items(place: str | Path, wanted: Wanted) -> Found:
    """The items of a source, and the (name, reason) of what cannot be looked into.

    place: a folder, searched with its subfolders; a table whose rows name files relative to the folder it lies in; a
    WebDataset tar, several as shards-{0000..0009}.tar, or a folder with tars; each also as a URL that fsspec knows. In
    a folder, a sidecar comes before a table. A file that several rows of a table name is an item for each of them.
    Raises `UserError` where there is nothing of the kind.
    """
    text = str(place)
    path = local_path(text) if is_url(text) else Path(place).expanduser()
    if path is None:
        return _remote(text, wanted)
    if "{" in str(path) and not path.exists():
        return _shards(str(path), Path, wanted)
    if path.is_file():
        return _one(path, str(path), _Disk(path.parent), wanted)
    if not path.is_dir():
        raise UserError(f"no such folder: {path}; expected {wanted.layout}")
    files, faults = _walk(path, wanted.suffixes)
    return _folder(_Disk(path), files, str(path), faults, wanted)


def _remote(url: str, wanted: Wanted) -> Found:
    name = url.rpartition("/")[2]
    if "{" in url:
        return _shards(url, remote_file, wanted)
    if is_tar(name) or name.lower().endswith(TABLE_SUFFIXES):
        return _one(remote_file(url), url, _Beside(url.removesuffix(name)), wanted)
    files = remote_files(url)
    if [*files] == [name]:
        return _one(files[name], url, _Beside(url), wanted)
    return _folder(_Listed(files), [(name, file) for name, file in files.items()], url, [], wanted)


class _Shelf(ABC):
    """Where the names that sidecars and tables use are looked up."""

    @abstractmethod
    def find(self, name: str) -> File | None:
        """The file of that name, None where there is none."""

    @abstractmethod
    def place(self, name: str) -> File:
        """The file of that name; if there is none, opening it says so."""


@dataclass(frozen=True)
class _Disk(_Shelf):
    folder: Path

    def find(self, name: str) -> File | None:
        path = self.folder / name
        return path if path.is_file() else None

    def place(self, name: str) -> File:
        return self.folder / name


@dataclass(frozen=True)
class _Listed(_Shelf):
    """A remote folder, which is listed once."""

    files: Mapping[str, File]

    def find(self, name: str) -> File | None:
        return self.files.get(os.path.normpath(name))

    def place(self, name: str) -> File:
        return self.find(name) or Missing(name)


@dataclass(frozen=True)
class _Beside(_Shelf):
    """What lies beside a remote table: its rows are looked up one by one, for the folder may be a whole store."""

    base: str

    def find(self, name: str) -> File | None:
        file = remote_file(self.base + name)
        try:
            file.look()
        except UnreadableError:
            return None
        return file

    def place(self, name: str) -> File:
        return remote_file(self.base + name)


def _one(file: File, where: str, shelf: _Shelf, wanted: Wanted) -> Found:
    """A source that is one file: a tar or a table."""
    name = where.rpartition("/")[2]
    if is_tar(name):
        return tar_entries(file, shown(name), wanted.suffixes, wanted.media)
    if name.lower().endswith(TABLE_SUFFIXES):
        return [_from_row(shelf, row) for row in read_table(file, where)], []
    raise UserError(
        f"{where} is a file: expected {wanted.layout}, or a .csv, .jsonl or .parquet table that names them, or a .tar"
    )


def _shards(pattern: str, opener: Callable[[str], File], wanted: Wanted) -> Found:
    """The tars that a pattern with braces names."""
    names = braces(pattern)
    if not all(is_tar(name) for name in names):
        raise UserError(f"no such folder: {pattern}; expected {wanted.layout}, or tars as in shards-{{0000..0009}}.tar")
    common = pattern[: pattern.index("{")].rpartition("/")
    start = len(common[0] + common[1])
    return _joined(tar_entries(opener(name), shown(name[start:]), wanted.suffixes, wanted.media) for name in names)


def _folder(
    shelf: _Shelf, files: list[tuple[str, File]], where: str, faults: list[Fault], wanted: Wanted
) -> Found:
    """The loose files of a folder with their captions, what its table names besides, and what its tars hold.

    files: by their names relative to the folder.
    """
    table = next(((name, file) for name in TABLES if (file := shelf.find(name)) is not None), None)
    rows: dict[str, list[Row]] = {}
    for row in read_table(table[1], f"{where.rstrip('/')}/{table[0]}") if table else []:
        row = replace(row, file=_present(shelf, row))
        rows.setdefault(os.path.normpath(row.file), []).append(row)
    found: list[Entry] = []
    for relative, file in files:
        if not relative.lower().endswith((*wanted.suffixes,)):
            continue
        name, named = shown(Path(relative).as_posix()), rows.pop(os.path.normpath(relative), [])
        try:
            caption = sidecar(relative, shelf.find)
        except UnreadableError as error:
            found.append(Entry(file, name, None, error.reason))
            continue
        if caption is not None or not named:
            found.append(Entry(file, name, caption))
        else:
            found.extend(Entry(file, name, row.caption, row.fault) for row in named)
    found.extend(_from_row(shelf, row) for left in rows.values() for row in left)
    tars = (
        tar_entries(file, shown(name), wanted.suffixes, wanted.media) for name, file in files if is_tar(name)
    )
    return _joined([(found, faults), *tars])


def _joined(parts: Iterable[Found]) -> Found:
    found: list[Entry] = []
    faults: list[Fault] = []
    for some, wrong in parts:
        found += some
        faults += wrong
    return found, faults


def _present(shelf: _Shelf, row: Row) -> str:
    """The name of a row's file: of several places the first where there is one."""
    if not row.also:
        return row.file
    return next((name for name in (row.file, *row.also) if shelf.find(name) is not None), row.file)


def _from_row(shelf: _Shelf, row: Row) -> Entry:
    if not row.file:
        return Entry(Missing(row.where), shown(row.where), None, row.fault or f"no file: {row.where} names none")
    name = _present(shelf, row)
    file = remote_file(name) if is_url(name) else shelf.place(name)
    return Entry(file, shown(name), row.caption, row.fault)


def _walk(folder: Path, suffixes: Collection[str]) -> tuple[list[tuple[str, File]], list[Fault]]:
    """All files with `suffixes` and all tars by their relative names, through links too but into no folder twice;
    hidden ones are passed over.
    """
    files: list[Path] = []
    faults: list[Fault] = []
    seen: set[str] = set()

    def fault(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        faults.append((shown(name), f"folder cannot be read: {error.strerror}"))

    for here, folders, names in os.walk(folder, followlinks=True, onerror=fault):
        real = os.path.realpath(here)
        if real in seen:  # a link back to where we have been
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            Path(here, name)
            for name in names
            if not name.startswith(".") and (os.path.splitext(name)[1].lower() in suffixes or is_tar(name))
        ]
    return [(os.path.relpath(path, folder), path) for path in sorted(files)], faults
