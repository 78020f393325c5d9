"""Which files a source has and what is said of each: folders, sidecars (.txt, .json) and tables (.csv,
.jsonl).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcm.data.report import UnreadableError
from mcm.errors import UserError

TABLES = ("captions.csv", "metadata.csv", "captions.jsonl", "metadata.jsonl")
CAPTION_KEYS = ("caption", "text", "prompt")
FILE_KEYS = ("file", "file_name", "filename", "path", "video", "image", "name")


@dataclass(frozen=True)
class Entry:
    """One item of a source: its file, its caption, or the fault that keeps it from having one.

    caption is None where none is to be found; fault then says why, if there is more to say than that.
    """

    path: Path
    name: str
    caption: str | None
    fault: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of a table: the file it names ("" where it names none), what it says of it, and where it
    stands.
    """

    file: str
    caption: str | None
    where: str
    fault: str | None = None


def shown(name: str) -> str:
    """A file name as text that can be printed, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def entries(path: Path, suffixes: Collection[str], layout: str) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The items of a source, sorted by name, and the (subfolder, reason) that could not be looked into.

    path: a folder, searched with its subfolders for files with `suffixes` (lower case), or a table whose rows
    name the files relative to the folder it lies in. In a folder, a sidecar comes before a table. A file that
    several rows of a table name is an item for each of them. `layout` says in error messages what is
    expected.
    """
    if path.is_file():
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise UserError(f"{path} is a file: expected {layout}, or a .csv or .jsonl table that names them")
        return [_from_row(path.parent, row) for row in read_table(path)], []
    if not path.is_dir():
        raise UserError(f"no such folder: {path}; expected {layout}")
    files, faults = _walk(path, suffixes)
    table = next((path / name for name in TABLES if (path / name).is_file()), None)
    rows: dict[str, list[Row]] = {}
    for row in read_table(table) if table else []:
        rows.setdefault(os.path.normpath(row.file), []).append(row)
    found: list[Entry] = []
    for file in files:
        relative = os.path.relpath(file, path)
        name, named = shown(Path(relative).as_posix()), rows.pop(os.path.normpath(relative), [])
        try:
            caption = sidecar(file)
        except UnreadableError as error:
            found.append(Entry(file, name, None, error.reason))
            continue
        if caption is not None or not named:
            found.append(Entry(file, name, caption))
        else:
            found.extend(Entry(file, name, row.caption, row.fault) for row in named)
    found.extend(_from_row(path, row) for left in rows.values() for row in left)
    return found, faults


def _from_row(folder: Path, row: Row) -> Entry:
    if not row.file:
        return Entry(folder, shown(row.where), None, row.fault or f"no file: {row.where} names none")
    return Entry(folder / row.file, shown(row.file), row.caption, row.fault)


def _walk(folder: Path, suffixes: Collection[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """All files with `suffixes`, through links too but into no folder twice; hidden ones are passed over."""
    files: list[Path] = []
    faults: list[tuple[str, str]] = []
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
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(files), faults


def sidecar(file: Path) -> str | None:
    """The caption beside a file: clip.txt or clip.mp4.txt, else clip.json ({"caption" | "text" | "prompt":
    ...}).

    None where there is no such file. Raises `UnreadableError` where there is one without a caption in it.
    """
    for suffix in (".txt", ".json"):
        for beside in (file.with_suffix(suffix), file.with_name(file.name + suffix)):
            if not beside.is_file():
                continue
            try:
                text = beside.read_bytes().decode("utf-8-sig")
                caption = _caption(json.loads(text)) if suffix == ".json" else _clean(text)
            except UnicodeDecodeError as error:
                raise UnreadableError(f"caption not UTF-8: {shown(beside.name)}; save it as UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise UnreadableError(f"caption is not JSON: {shown(beside.name)}: {error}") from error
            except OSError as error:
                raise UnreadableError(
                    f"caption cannot be read: {shown(beside.name)}: {error.strerror}"
                ) from error
            if caption is None:
                raise UnreadableError(f"no caption: there is none in {shown(beside.name)}")
            return caption
    return None


def read_table(path: Path, need_file: bool = True) -> list[Row]:
    """The rows of a .csv (with a heading) or .jsonl table.

    Its columns: one of `CAPTION_KEYS`, and one of `FILE_KEYS` unless `need_file` is off; upper and lower case
    are the same. A row that cannot be used comes back with its fault. Raises `UserError` where the table as a
    whole cannot.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16: save it as UTF-8")
    # bytes that are not UTF-8 are kept as such, so that only the rows they stand in are lost
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if path.suffix.lower() == ".csv":
        return _csv_rows(path, text, need_file)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(_json_row(f"{path.name} line {number}", line, need_file))
    return rows


def _csv_rows(path: Path, text: str, need_file: bool) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""))
    rows: list[Row] = []
    try:
        heading = [cell.strip().lower() for cell in next(reader, [])]
        said = _column(path, heading, CAPTION_KEYS, "captions")
        file = _column(path, heading, FILE_KEYS, "file names") if need_file else None
        for cells in reader:
            where = f"{path.name} line {reader.line_num}"
            if any(cell.strip() for cell in cells):
                cells += [""] * (len(heading) - len(cells))
                rows.append(_row(cells[file].strip() if file is not None else "", cells[said], where))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV table: line {reader.line_num}: {error}") from error
    return rows


def _column(path: Path, heading: list[str], keys: tuple[str, ...], what: str) -> int:
    for key in keys:
        if key in heading:
            return heading.index(key)
    raise UserError(
        f"{path} has no column with the {what}: its heading is {', '.join(heading) or 'empty'}; "
        f"expected one of {', '.join(keys)}"
    )


def _json_row(where: str, line: str, need_file: bool) -> Row:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row("", None, where, f"not JSON: {where}: {error}")
    if not isinstance(said, dict):
        return Row("", None, where, f"not a JSON object: {where}")
    said = {str(key).lower(): value for key, value in said.items()}
    file = next((said[key] for key in FILE_KEYS if isinstance(said.get(key), str)), "") if need_file else ""
    return _row(file.strip(), _caption(said) or "", where)


def _row(file: str, caption: str, where: str) -> Row:
    if any("\udc80" <= letter <= "\udcff" for letter in caption):
        return Row(file, None, where, f"caption not UTF-8: {where}; save the table as UTF-8")
    said = _clean(caption)
    return Row(file, said, where, None if said else f"no caption: there is none in {where}")


def _caption(said: Any) -> str | None:
    """The caption in what a JSON file holds: a text, a list of texts (the first), or an object with one of
    the keys.
    """
    if isinstance(said, dict):
        said = {str(key).lower(): value for key, value in said.items()}
        said = next((said[key] for key in CAPTION_KEYS if said.get(key)), None)
    if isinstance(said, list) and said:
        said = said[0]
    return _clean(said) if isinstance(said, str) else None


def _clean(text: str) -> str | None:
    """One line, single spaces; None if nothing is left."""
    return " ".join(text.split()) or None
