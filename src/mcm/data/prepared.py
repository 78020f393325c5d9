"""A prepared source: a folder of shards (see `shards`) that training reads a piece at a time, as `mcm prepare` made it.

index.json, which comes last and makes the folder whole, names the shards and what they were made with.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mcm.data.cache import difference, fingerprint
from mcm.data.report import SourceReport
from mcm.data.shards import Shard, Text
from mcm.data.sources import Picture
from mcm.errors import UserError
from mcm.output import write_json

VERSION = 1  # of what stands in the files
INDEX, SETTINGS, EMPTY = "index.json", "prepare.json", "empty-text.safetensors"
_OPEN = 16  # shards open at a time


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.safetensors"


class _Prepared:
    """The shards of a finished folder, opened when they are read, a few at a time; items by number."""

    kind: str
    what: str

    def __init__(self, folder: str | Path, wanted: Mapping[str, Any]) -> None:
        """wanted: what the run needs them to be made with. Raises UserError where they are not, or are not whole."""
        self.folder = Path(folder).expanduser()
        index = read_index(self.folder)
        if index["kind"] != self.kind:
            raise UserError(f"{folder} holds prepared {index['kind']}: expected prepared {self.kind}")
        made: dict[str, Any] = index["made_with"]
        known = {key: made.get(key) for key in wanted}
        if known != dict(wanted):
            raise UserError(
                f"{folder} does not fit this run: {difference(known, wanted)} (it was prepared for the teacher "
                f"{index['teacher']}); change the run's settings, or prepare the source anew into another folder"
            )
        self.made_with, self.mark = made, index["fingerprint"]
        self.kept = int(index["kept"])
        self._names = [shard["file"] for shard in index["shards"]]
        self._begins = np.cumsum([0, *(shard["count"] for shard in index["shards"])])
        for shard in index["shards"]:
            path = self.folder / shard["file"]
            there = path.stat().st_size if path.is_file() else None
            if there != shard["bytes"]:
                state = "is missing" if there is None else f"has {there} bytes instead of {shard['bytes']}"
                raise UserError(f"{path} {state}: delete it and run the same `mcm prepare` again, it is made anew")
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self.report = SourceReport(len(self), len(self), [], f"prepared {self.what}", str(folder))

    def __len__(self) -> int:
        return int(self._begins[-1])

    @property
    def captions(self) -> Iterator[str]:
        for number in range(len(self._names)):
            yield from (item["caption"] for item in self._shard(number).items)

    def said(self, index: Sequence[int]) -> list[str]:
        return [shard.items[k]["caption"] for shard, k in map(self._at, index)]

    def _at(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        number = int(np.searchsorted(self._begins, index, side="right")) - 1
        return self._shard(number), index - int(self._begins[number])

    def pooled(self, index: Sequence[int]) -> Tensor:
        """The text encoder's pooled word on their captions, (N, E)."""
        return torch.stack([shard.pooled(k) for shard, k in map(self._at, index)])

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            shard = Shard(self.folder / self._names[number])
            if shard.mark != self.mark:
                raise UserError(f"{shard.path} belongs to another folder: run the same `mcm prepare` again")
            self._open[number] = shard
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


class PreparedClips(_Prepared):
    """Prepared clips, as training reads them (`cache.EncodedClips`)."""

    kind = "videos"
    what = "videos"

    def latents(self, index: Sequence[int]) -> Tensor:
        return torch.stack([shard.latents(k) for shard, k in map(self._at, index)])

    def texts(self, index: Sequence[int]) -> Text:
        length = self.empty_text()[0].shape[1]
        found = [shard.text(k, length) for shard, k in map(self._at, index)]
        return torch.stack([hidden for hidden, _ in found]), torch.stack([pooled for _, pooled in found])

    def empty_text(self) -> Text:
        return self._empty

    @cached_property
    def _empty(self) -> Text:
        path = self.folder / EMPTY
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor("hidden").float(), file.get_tensor("pooled").float()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): run the same `mcm prepare` again") from error

    def frame(self, clip: int, k: int) -> Tensor:
        shard, number = self._at(clip)
        return shard.frame(number, k, self.kept)


class PreparedPictures(_Prepared):
    """Prepared pictures (`open.PictureSource`)."""

    kind = "images"
    what = "pictures"

    def __getitem__(self, index: int) -> Picture:
        shard, k = self._at(index)
        item = shard.items[k]
        return Picture(shard.frame(k, 0, 1).float() / 127.5 - 1, item["caption"], item["name"])

    def __iter__(self) -> Iterator[Picture]:
        return (self[k] for k in range(len(self)))


def is_prepared(place: str) -> bool:
    """Whether `mcm prepare` has worked here; whether it is done is another matter."""
    folder = Path(place).expanduser()
    return (folder / SETTINGS).is_file() and ((folder / INDEX).exists() or any(folder.glob("shard-*.safetensors")))


def write_index(folder: Path, kind: str, teacher: str, made_with: Mapping[str, Any], kept: int, files: Any) -> None:
    """files: (path, items) of each shard. Without this the folder counts as unfinished."""
    shards = [{"file": path.name, "count": count, "bytes": path.stat().st_size} for path, count in files]
    write_json(
        folder / INDEX,
        {
            "version": VERSION, "kind": kind, "teacher": teacher, "fingerprint": fingerprint(made_with),
            "made_with": dict(made_with), "kept": kept, "count": sum(s["count"] for s in shards), "shards": shards,
        },
    )  # fmt: skip


def read_index(folder: Path) -> dict[str, Any]:
    """UserError where it is missing, damaged or of another version."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["version"] != VERSION:
            raise UserError(f"{folder} has version {index['version']}, not {VERSION}: prepare the source anew")
        if index["fingerprint"] != fingerprint(index["made_with"]) or not isinstance(index["shards"], list):
            raise ValueError("its fingerprint does not fit")
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not prepared to the end: run the same `mcm prepare` again, it goes on") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run the same `mcm prepare` again") from error
    return index
