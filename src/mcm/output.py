"""Where results go: output folders that hold one run each, whole files or none, and how progress is told."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from mcm.errors import UserError

_ABSENT = object()


class Progress(Protocol):
    """Told by whatever takes long; the command line draws it, the Python calls default to `silent`.

    what: the phase in a few words ("training", "reading videos"); a new one begins a new bar. done of total:
    units finished in this phase, total 0 when unknown. note: a few numbers ("loss 0.031"), may be empty.
    """

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """The `Progress` that says nothing."""


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a file or folder that the disk refuses, with what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"cannot write {path}: the disk is full; free some space and run the command again")
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; choose another --out, or make this place writable")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, of the same suffix, that becomes `path` when the block ends well.

    The folder is made if it is missing. After an error, a kill or a full disk nothing stands under the final
    name but what was there before. Raises UserError where the disk refuses.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # as the user's umask has it; safetensors' writer lets nobody else read
        part.unlink()
        yield part
        os.chmod(part, mode)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # In a folder that cannot even be searched there is nothing to remove, and the error above says so.
        if os.access(part.parent, os.X_OK):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all. Raises UserError."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON whole or not at all. UserError; ValueError for NaN, which JSON does not know."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole(path) as part:
        try:
            save_file(dict(tensors), part, dict(metadata) if metadata else None)
        except SafetensorError as error:  # how its writer says that the disk is full
            raise UserError(f"cannot write {path}: {error}; free some space and run the command again") from error


def to_yaml(data: Any) -> str:
    """Plain data as YAML, in the given order."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def holds(folder: Path, settings: Mapping[str, Any], file: str, usual: Mapping[str, Any] | None = None) -> bool:
    """Whether `folder` holds the very run that `settings` describe, in `file` inside; writes nothing.

    usual: dotted settings and what they stand for where `file` does not name them: it may be older than they are.

    False for a folder that is new or empty; hidden files do not count, nor does `file` alone, which a run
    that failed at its start leaves. Raises UserError where the folder holds another run (the settings that
    differ are named) or things that are no such run, or takes no files.
    """
    marker = folder / file
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: --out expects a folder")
        inside = [path.name for path in folder.iterdir()] if folder.exists() else []
        others = sorted(name for name in inside if name != file and not name.startswith("."))
        if marker.exists() and others:
            _same_run(folder, settings, _plain(marker), usual or {})
            return True
        _writable(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if others:
        shown = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        raise UserError(
            f"{folder} already holds other things ({shown}) and no {file}: choose another --out, or empty it"
        )
    return False


def _writable(folder: Path) -> None:
    """Raises OSError where the folder, or the nearest one above it that exists, takes no files."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no permission to write into {place}")


def claim(
    folder: Path, settings: Mapping[str, Any], file: str, comment: str = "", usual: Mapping[str, Any] | None = None
) -> bool:
    """Make `folder` the home of one run, described by `settings`; True if it was that already and may go on.

    The settings are written to `file` inside, as YAML or JSON by its suffix; `comment` becomes the first line
    of YAML; usual: as of `holds`. Raises UserError as that does, and where the folder cannot be made or written.
    """
    if holds(folder, settings, file, usual):
        return True
    if file.endswith(".json"):
        write_json(folder / file, settings)
    else:
        write_text(folder / file, (f"# {comment}\n" if comment else "") + to_yaml(dict(settings)))
    return False


def _plain(marker: Path) -> Any:
    text = marker.read_bytes()
    try:
        # Not all JSON is YAML: PyYAML takes JSON's 1e-05 for a string.
        return json.loads(text) if marker.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"{marker} is damaged: choose another --out, or remove the folder {marker.parent}"
        ) from error


def _same_run(folder: Path, settings: Mapping[str, Any], there: Any, usual: Mapping[str, Any]) -> None:
    # Through JSON, so that tuples and lists, which a file cannot tell apart, are equal.
    wanted, found = flat(json.loads(json.dumps(settings))), flat(there if isinstance(there, dict) else {})
    found = {**{key: value for key, value in json.loads(json.dumps(usual)).items() if key in wanted}, **found}
    differ = [key for key in {**found, **wanted} if found.get(key, _ABSENT) != wanted.get(key, _ABSENT)]
    if not differ:
        return
    parts = [f"{key} is {_said(found, key)} there and {_said(wanted, key)} here" for key in differ[:3]]
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise UserError(
        f"{folder} holds another run ({'; '.join(parts)}{more}): choose another --out, or remove that folder"
    )


def _said(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], ensure_ascii=False) if key in values else "not set"
    return text if len(text) <= 60 else text[:57] + "..."


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}; lists stay whole."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
