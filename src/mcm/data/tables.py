"""Tables that name files and say what they show: .csv, .jsonl and .parquet, WebVid's columns among them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

from mcm.data.captions import CAPTION_KEYS, caption_of, clean
from mcm.data.files import File, opened
from mcm.data.report import UnreadableError
from mcm.errors import UserError

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
TABLES = tuple(f"{stem}{suffix}" for suffix in TABLE_SUFFIXES for stem in ("captions", "metadata"))
FILE_KEYS = ("file", "file_name", "filename", "path", "video", "image", "name")


@dataclass(frozen=True)
class Row:
    """One row of a table: the file it names ("" where it names none), what it says of it, and where it
    stands. also: other places where that file may lie.
    """

    file: str
    caption: str | None
    where: str
    fault: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that are read: of the captions, of the file names, and of WebVid's folders.

    WebVid's columns are videoid, contentUrl, duration, page_dir and name: there "name" is the caption.
    """

    said: str
    file: str | None
    webvid: bool = False
    folder: str | None = None

    def row(self, said: dict[str, str], where: str) -> Row:
        """said: the cells of a row."""
        caption, file = said.get(self.said, ""), said.get(self.file or "", "").strip()
        if not self.webvid or not file:
            return _row(file, caption, where)
        folder = said.get(self.folder or "", "").strip()
        names = [f"{folder}/{file}.mp4", f"{file}.mp4"] if folder else [f"{file}.mp4"]
        first, *also = [*names, *(f"videos/{name}" for name in names)]
        return _row(first, caption, where, tuple(also))


def read_table(table: File, name: str, need_file: bool = True) -> list[Row]:
    """The rows of a .csv (with a heading), .jsonl or .parquet table; its `name` says which.

    Its columns: one of `CAPTION_KEYS`, and one of `FILE_KEYS` unless `need_file` is off; upper and lower case
    are the same. Or WebVid's: a row then names page_dir/videoid.mp4 or videoid.mp4, also in a folder videos/.
    A row that cannot be used comes back with its fault. Raises `UserError` where the table as a whole cannot.
    """
    short = PurePath(name).name
    if name.lower().endswith(".parquet"):
        return _parquet_rows(table, name, short, need_file)
    try:
        with opened(table) as stream:
            data = stream.read()
    except (OSError, UnreadableError) as error:
        raise _cannot_read(name, error) from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{name} is UTF-16: save it as UTF-8")
    # bytes that are not UTF-8 are kept as such, so that only the rows they stand in are lost
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if name.lower().endswith(".csv"):
        return _csv_rows(name, short, text, need_file)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(_json_row(f"{short} line {number}", line, need_file))
    return rows


def _cannot_read(name: str, error: OSError | UnreadableError) -> UserError:
    why = error.reason if isinstance(error, UnreadableError) else error.strerror or str(error)
    return UserError(f"cannot read {name}: {why}")


def _csv_rows(name: str, short: str, text: str, need_file: bool) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""))
    rows: list[Row] = []
    try:
        heading = [cell.strip().lower() for cell in next(reader, [])]
        columns = _columns(name, heading, need_file)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                pairs = list(zip_longest(heading, cells[: len(heading)], fillvalue=""))
                said = dict(reversed(pairs))  # of two columns of one name the first counts
                rows.append(columns.row(said, f"{short} line {reader.line_num}"))
    except csv.Error as error:
        raise UserError(f"{name} is not a CSV table: line {reader.line_num}: {error}") from error
    return rows


def _parquet_rows(table: File, name: str, short: str, need_file: bool) -> list[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            f"{name}: reading Parquet needs pyarrow: pip install 'motion-consistency[parquet]'"
        ) from error
    rows: list[Row] = []
    try:
        with opened(table) as stream, pq.ParquetFile(stream) as file:
            names = {str(column).strip().lower(): column for column in reversed(file.schema_arrow.names)}
            columns = _columns(name, list(reversed(names)), need_file)
            wanted = [key for key in (columns.said, columns.file, columns.folder) if key is not None]
            for batch in file.iter_batches(batch_size=4096, columns=[names[key] for key in wanted]):
                cells = {key: _texts(batch.column(names[key]), f"{name}: column {key}") for key in wanted}
                for values in zip(*cells.values(), strict=True):
                    said = dict(zip(cells, values, strict=True))
                    rows.append(columns.row(said, f"{short} row {len(rows) + 1}"))
    except UnreadableError as error:
        raise _cannot_read(name, error) from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name} is not a Parquet table, or damaged: {' '.join(str(error).split())}") from error
    return rows


def _texts(column: Any, where: str) -> list[str]:
    """The cells of an Arrow column as texts, "" for none; of a list the first."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        raise UserError(f"{where} holds {kind}: expected texts (pictures and films lie beside a table, not in it)")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # as bytes: what is not UTF-8 costs its row, not the table
        column = column.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
    try:
        return [_text(value) for value in column.to_pylist()]
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: save the table as UTF-8") from error


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # numbers become floats where a column has gaps
    if isinstance(value, list):
        return caption_of(value) or ""
    return "" if value is None else str(value)


def _columns(name: str, heading: list[str], need_file: bool) -> _Columns:
    webvid = "videoid" in heading and not any(key in heading for key in FILE_KEYS if key != "name")
    spoken = (*CAPTION_KEYS, "name") if webvid else CAPTION_KEYS
    said = _column(name, heading, spoken, "captions", CAPTION_KEYS)
    if not need_file:
        return _Columns(said, None)
    if webvid:
        return _Columns(said, "videoid", True, "page_dir" if "page_dir" in heading else None)
    return _Columns(said, _column(name, heading, FILE_KEYS, "file names", FILE_KEYS))


def _column(
    name: str, heading: list[str], keys: tuple[str, ...], what: str, expected: tuple[str, ...]
) -> str:
    for key in keys:
        if key in heading:
            return key
    raise UserError(
        f"{name} has no column with the {what}: its heading is {', '.join(heading) or 'empty'}; "
        f"expected one of {', '.join(expected)}"
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
    return _row(file.strip(), caption_of(said) or "", where)


def _row(file: str, caption: str, where: str, also: tuple[str, ...] = ()) -> Row:
    if any("\udc80" <= letter <= "\udcff" for letter in caption):
        return Row(file, None, where, f"caption not UTF-8: {where}; save the table as UTF-8", also)
    said = clean(caption)
    return Row(file, said, where, None if said else f"no caption: there is none in {where}", also)
