"""What is said of a file: captions in sidecars (.txt, .json), wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mcm.data.files import File, opened
from mcm.data.report import UnreadableError

CAPTION_KEYS = ("caption", "text", "prompt")
MAX_CAPTION = 1 << 20  # bytes: a longer sidecar is none, and must not fill the memory


@dataclass(frozen=True)
class Entry:
    """One item of a source: its file, its caption, or the fault that keeps it from having one.

    caption is None where none is to be found; fault then says why, if there is more to say than that.
    """

    path: File
    name: str
    caption: str | None
    fault: str | None = None


def shown(name: str) -> str:
    """A file name as one line of text that can be printed, whatever bytes it is made of."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(repr(letter)[1:-1] if letter < " " or letter == "\x7f" else letter for letter in text)


def sidecar(name: str, find: Callable[[str], File | None]) -> str | None:
    """The caption beside the file `name`: clip.txt or clip.mp4.txt, else clip.json ({"caption" | "text" |
    "prompt": ...}).

    find: the file of a name beside it, None where there is none. None where there is no such file. Raises
    `UnreadableError` where there is one without a caption in it.
    """
    for suffix in (".txt", ".json"):
        for beside in (str(PurePath(name).with_suffix(suffix)), name + suffix):
            file = find(beside)
            if file is None:
                continue
            short = PurePath(beside).name
            try:
                with opened(file) as stream:
                    data = stream.read(MAX_CAPTION + 1)
            except OSError as error:
                raise UnreadableError(f"caption cannot be read: {shown(short)}: {error.strerror}") from error
            except UnreadableError as error:
                raise UnreadableError(f"caption cannot be read: {shown(short)}: {error.reason}") from error
            return caption_in(data, short)
    return None


def caption_in(data: bytes, name: str) -> str:
    """The caption in the bytes of a sidecar, JSON where its name ends in .json. Raises `UnreadableError`."""
    if len(data) > MAX_CAPTION:
        raise UnreadableError(f"caption too long: {shown(name)} has more than {MAX_CAPTION >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
        caption = caption_of(json.loads(text)) if name.lower().endswith(".json") else clean(text)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"caption not UTF-8: {shown(name)}; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"caption is not JSON: {shown(name)}: {error}") from error
    if caption is None:
        raise UnreadableError(f"no caption: there is none in {shown(name)}")
    return caption


def caption_of(said: Any) -> str | None:
    """The caption in what a JSON file holds: a text, a list of texts (the first), or an object with one of
    the keys.
    """
    if isinstance(said, dict):
        said = {str(key).lower(): value for key, value in said.items()}
        said = next((said[key] for key in CAPTION_KEYS if said.get(key)), None)
    if isinstance(said, list) and said:
        said = said[0]
    return clean(said) if isinstance(said, str) else None


def clean(text: str) -> str | None:
    """One line, single spaces; None if nothing is left."""
    return " ".join(text.split()) or None
