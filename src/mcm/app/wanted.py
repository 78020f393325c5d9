"""What the page is asked for, read strictly: a value comes from anybody, by the page or by the API."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcm.app.systems import Systems
from mcm.data.pictures import PICTURE_SUFFIXES
from mcm.errors import UserError, one_of

POSE_SUFFIXES = (".json", *PICTURE_SUFFIXES)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many may wait.

    systems: side by side; file_bytes: of one uploaded file, upload_bytes of all of a request; queue: requests waiting;
    kept: videos in a session's gallery; body_bytes: of a request without its files; age: seconds that files are kept.
    """

    prompt: int = 500
    steps: int = 8
    teacher_steps: int = 50
    frames: int = 32
    guidance: float = 30.0
    seed: int = 2**32 - 1
    systems: int = 4
    files: int = 64
    file_bytes: int = 2 * 2**20
    upload_bytes: int = 16 * 2**20
    queue: int = 16
    kept: int = 24
    body_bytes: int = 256 * 2**10
    age: int = 3600


@dataclass(frozen=True)
class Upload:
    """An uploaded file: where it lies, and what its owner calls it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Wanted:
    """A checked request. guidance, frames: None for a model's own; guidance is for teachers. pose: an action's name."""

    prompt: str
    systems: tuple[str, ...]
    steps: int
    teacher_steps: int
    seed: int
    guidance: float | None
    frames: int | None
    pose: str | None
    uploads: tuple[Upload, ...]


def read_wanted(
    raw: Mapping[str, Any], limits: Limits, systems: Systems, actions: Sequence[str], uploaded: Path
) -> Wanted:
    """The request in `raw` (JSON values by the names of `Wanted`); uploaded: the folder of uploaded files.

    Raises:
        UserError: naming the value, what was expected and what came.
    """
    action, uploads = read_pose(raw, limits, actions, uploaded)
    return Wanted(
        prompt=_prompt(raw.get("prompt"), limits.prompt),
        systems=_systems(raw.get("systems"), limits.systems, systems),
        steps=_whole("steps", raw.get("steps"), 1, limits.steps),
        teacher_steps=_whole("teacher steps", raw.get("teacher_steps"), 1, limits.teacher_steps),
        seed=_whole("seed", raw.get("seed"), 0, limits.seed),
        guidance=_optional_number("guidance scale", raw.get("guidance"), limits.guidance),
        frames=None if raw.get("frames") is None else _whole("frames", raw["frames"], 1, limits.frames),
        pose=action,
        uploads=uploads,
    )


def read_pose(
    raw: Mapping[str, Any], limits: Limits, actions: Sequence[str], uploaded: Path
) -> tuple[str | None, tuple[Upload, ...]]:
    """The "pose" and "uploads" of a request: an action's name or files, or neither. UserError as `read_wanted`'s."""
    action = raw.get("pose") or None
    if action is not None and (not isinstance(action, str) or action not in actions):
        raise one_of("pose", _said(action), actions)
    uploads = _uploads(raw.get("uploads"), limits, uploaded)
    if action is not None and uploads:
        raise UserError("pose: choose an action or upload files, not both; clear one of them")
    return action, uploads


def _prompt(value: Any, most: int) -> str:
    if not isinstance(value, str):
        raise UserError(f"prompt: expected a text, got {_said(value)}")
    if len(value) > most:
        raise UserError(f"prompt: {len(value)} characters; expected at most {most}")
    text = " ".join(value.split())
    if not text:
        raise UserError("prompt: it is empty; say what the video shall show")
    # Cc: control characters, Cs: halves of a character, Co and Cn: what no font and no tokenizer knows.
    wrong = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn")), None)
    if wrong is not None:
        raise UserError(f"prompt: it holds the character U+{ord(wrong):04X}, which is no text; take it out")
    return text


def _systems(value: Any, most: int, systems: Systems) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"systems: expected a list of names, got {_said(value)}")
    chosen = tuple(dict.fromkeys(value))
    if not 1 <= len(chosen) <= most:
        raise UserError(f"systems: {len(chosen)} chosen; expected 1 to {most} side by side")
    for name in chosen:
        if name not in systems:
            raise one_of("system", _said(name), systems)
    return chosen


def _whole(what: str, value: Any, least: int, most: int) -> int:
    """A whole number; 4.0 is one, for a browser knows no other."""
    is_number = type(value) is int or (type(value) is float and value.is_integer())
    if not is_number or not least <= value <= most:
        raise UserError(f"{what}: expected a whole number from {least} to {most}, got {_said(value)}")
    return int(value)


def _optional_number(what: str, value: Any, most: float) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise UserError(f"{what}: expected a number from 0 to {most:g}, or none, got {_said(value)}")
    return float(value)


def _uploads(value: Any, limits: Limits, folder: Path) -> tuple[Upload, ...]:
    """The files that gradio's `FileData` objects name; each must lie where uploads lie, whatever the request says."""
    files = value if isinstance(value, list) else [] if value is None else [value]
    if len(files) > limits.files:
        raise UserError(f"pose: {len(files)} files; expected at most {limits.files}")
    found, total = [], 0
    for file in files:
        if not isinstance(file, dict) or not isinstance(file.get("path"), str):
            raise UserError(f"pose: expected uploaded files, got {_said(file)}")
        if "\0" in file["path"]:
            raise UserError("pose: a file was not uploaded to this page")
        path = Path(file["path"]).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise UserError("pose: a file was not uploaded to this page (or too long ago); upload it again")
        given = file.get("orig_name")
        name = Path(given).name if isinstance(given, str) and given else path.name
        if path.suffix.lower() not in POSE_SUFFIXES:
            raise UserError(
                f"pose: {_said(name)} is no pose; expected OpenPose's .json, or pictures of skeletons "
                f"({' '.join(PICTURE_SUFFIXES)})"
            )
        size = path.stat().st_size
        if size > limits.file_bytes:
            raise UserError(f"pose: {_said(name)} has {_mb(size)}; expected at most {_mb(limits.file_bytes)}")
        total += size
        found.append(Upload(path, name))
    if total > limits.upload_bytes:
        raise UserError(f"pose: the files have {_mb(total)}; expected at most {_mb(limits.upload_bytes)}")
    kinds = {upload.path.suffix.lower() == ".json" for upload in found}
    if len(kinds) > 1:
        raise UserError("pose: keypoints (.json) and pictures together; expected one kind")
    return tuple(sorted(found, key=lambda upload: upload.name))


def _mb(size: int) -> str:
    return f"{size / 2**20:.3g} MB"


def _said(value: Any) -> str:
    """A value for a message: short, without what a terminal or a page would take for more than text."""
    if isinstance(value, int) and abs(value) > 10**18:
        return "a huge number"  # Python refuses to write numbers of thousands of digits
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text[:60])
    return text if len(text) < 60 else text[:57] + "..."
