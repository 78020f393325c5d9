"""The list of a source's items as they were found, kept in a file: what is prepared does not change under the work.

One JSON line says how many items follow and what could not be looked into, then each item has a line. A source of
millions takes its lines' places in memory, not the lines.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcm.data.captions import Entry
from mcm.data.files import File, Missing
from mcm.data.remote import RemoteFile, remote_file
from mcm.data.tars import Member
from mcm.errors import UserError
from mcm.output import whole


class Manifest:
    """Reads what `write_manifest` wrote; items by number. digest: SHA-256 of the file."""

    def __init__(self, path: Path) -> None:
        self._starts = array("q")
        digest = hashlib.sha256()
        try:
            self._file = open(path, "rb")  # noqa: SIM115 (it stays open)
            line = self._file.readline()
            head = json.loads(line)
            digest.update(line)
            self.faults: list[tuple[str, str]] = [(name, reason) for name, reason in head["faults"]]
            start = len(line)
            for line in self._file:
                digest.update(line)
                self._starts.append(start)
                start += len(line)
            if head["count"] != len(self):
                raise ValueError(f"{len(self)} items instead of {head['count']}")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): remove the folder {path.parent} and prepare anew") from error
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Entry:
        self._file.seek(self._starts[index])
        place, name, caption, fault = json.loads(self._file.readline())
        return Entry(_file(place), name, caption, fault)


def write_manifest(path: Path, entries: Sequence[Entry], faults: Sequence[tuple[str, str]]) -> None:
    """Where another rank has written the file meanwhile, that one stays."""
    mine = path.with_name(f".{os.getpid()}.{path.name}")
    with whole(mine) as partial, open(partial, "w", encoding="ascii") as file:
        file.write(json.dumps({"count": len(entries), "faults": faults}) + "\n")
        for entry in entries:
            file.write(json.dumps([_plain(entry.path), entry.name, entry.caption, entry.fault]) + "\n")
    try:
        os.link(mine, path)  # unlike a renaming, it replaces nothing
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(mine, path)
    finally:
        mine.unlink(missing_ok=True)


def _plain(file: File) -> Any:
    """For JSON."""
    if isinstance(file, Path):
        return str(file)
    if isinstance(file, Member):
        return {"tar": _plain(file.shard), "member": file.name, "offset": file.offset, "size": file.size}
    if isinstance(file, RemoteFile):
        return {"url": file.url}
    return {"missing": file.name}


def _file(place: Any) -> File:
    if isinstance(place, str):
        return Path(place)
    if "tar" in place:
        return Member(_file(place["tar"]), place["member"], place["offset"], place["size"])
    return remote_file(place["url"]) if "url" in place else Missing(place["missing"])
