"""One shard of a prepared source: some of its clips or pictures, encoded, in a safetensors file that is written whole.

    z (n, C, T, h, w)        scaled latents, float16 (clips only)
    text (n,)                which of the U different captions each item has
    pooled (U, E)            the text encoder's word on each caption
    hidden (R, D), rows (U,) and its token states, one caption after the other; rows: where each ends in them.
                             Zeros at the end of a caption, which padding is to some encoders, are left out.
    jpeg (bytes,), ends (n * K,)   K real frames of each item as JPEG, one after the other, and where each ends

and, as JSON in its header, each item's name, caption and measures, and what was left out of the source's items.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mcm.data.encode import as_pixels
from mcm.data.pictures import UnreadablePicture, decode_picture
from mcm.errors import UserError
from mcm.output import write_tensors

Text = tuple[Tensor, Tensor]  # of one caption: hidden (L, D) and pooled (E,); or of several, (B, L, D) and (B, E)


def as_jpeg(picture: Tensor, quality: int) -> bytes:
    """float (3, H, W) in [-1, 1] -> a JPEG with its colours at full resolution."""
    file = io.BytesIO()
    Image.fromarray(as_pixels(picture).numpy()).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


@dataclass
class ShardDraft:
    """A shard in the making: at most its own items are in memory."""

    items: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    _z: list[Tensor] = field(default_factory=list)
    _texts: dict[str, tuple[Tensor | None, Tensor]] = field(default_factory=dict)
    _jpegs: list[bytes] = field(default_factory=list)

    def add(self, item: Mapping[str, Any], z: Tensor | None, jpegs: Sequence[bytes]) -> None:
        """item: name, caption and measures, for JSON. z: (C, T, h, w), or None for a picture."""
        self.items.append(dict(item))
        self._jpegs += jpegs
        if z is not None:
            self._z.append(z)

    def has_text(self, caption: str) -> bool:
        return caption in self._texts

    def add_text(self, caption: str, hidden: Tensor | None, pooled: Tensor) -> None:
        """hidden: (L, D), None for a picture; pooled: (E,)."""
        self._texts[caption] = (hidden, pooled)

    def write(self, path: Path, mark: str, listing: str) -> None:
        """mark: the fingerprint; listing: which list of items it is a part of. UserError where the disk refuses."""
        tensors: dict[str, Tensor] = {}
        if self.items:
            rows = {caption: row for row, caption in enumerate(self._texts)}
            tensors["text"] = torch.tensor([rows[item["caption"]] for item in self.items])
            tensors["pooled"] = torch.stack([pooled for _, pooled in self._texts.values()])
            hidden = [_without_padding(states) for states, _ in self._texts.values() if states is not None]
            if hidden:
                tensors["hidden"] = torch.cat(hidden)
                tensors["rows"] = torch.tensor([len(states) for states in hidden]).cumsum(0)
            if self._z:
                tensors["z"] = torch.stack(self._z)
            tensors["jpeg"] = torch.from_numpy(np.frombuffer(b"".join(self._jpegs), np.uint8).copy())
            tensors["ends"] = torch.tensor([len(jpeg) for jpeg in self._jpegs]).cumsum(0)
        about = {"fingerprint": mark, "listing": listing, "items": self.items, "dropped": self.dropped}
        write_tensors(path, tensors, header(about))


def header(about: Mapping[str, Any]) -> dict[str, str]:
    """A file's metadata in one entry: safetensors writes several in any order, which would make different files."""
    return {"about": json.dumps(about, ensure_ascii=False)}


def _without_padding(hidden: Tensor) -> Tensor:
    """The states (L, D) up to the last one that is not 0, at least one."""
    used = hidden.any(1).nonzero()
    return hidden[: int(used[-1]) + 1] if len(used) else hidden[:1]


class Shard:
    """One shard, its tensors on disk. Raises `UserError` where it is missing, damaged, cut off or holds NaN.

    mark: the fingerprint of what it was made with; listing: of the list of items it is a part of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._again = f"delete {path} and run the same `mcm prepare` again: it makes that shard anew"
        try:
            self._file = safe_open(path, "pt")
            self._file.__enter__()
            about = json.loads((self._file.metadata() or {})["about"])
            self.mark, self.listing = about["fingerprint"], about["listing"]
            self.items, self.dropped = list(about["items"]), [(name, why) for name, why in about["dropped"]]
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: run the same `mcm prepare` again, it makes that shard anew") from error
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged or cut off ({error}): {self._again}") from error
        self._small: dict[str, Tensor] = {}  # the index tensors, read once

    def __len__(self) -> int:
        return len(self.items)

    def latents(self, k: int) -> Tensor:
        """Scaled latents (C, T, h, w) of clip k."""
        return self._finite(self._part("z", k), k, "latents")

    def text(self, k: int, length: int) -> Text:
        """hidden (L, D) for L = `length` tokens and pooled (E,) of item k's caption, in float32."""
        begin, end = self._span("rows", self._text(k))
        states = self._finite(self._part("hidden", slice(begin, end)), k, "text embedding").float()
        return torch.cat([states, states.new_zeros(length - len(states), states.shape[1])]), self.pooled(k)

    def pooled(self, k: int) -> Tensor:
        """pooled (E,) of item k's caption, in float32."""
        return self._finite(self._part("pooled", self._text(k)), k, "text embedding").float()

    def frame(self, k: int, number: int, kept: int) -> Tensor:
        """Frame `number` of the `kept` ones of item k, uint8 (3, H, W)."""
        begin, end = self._span("ends", k * kept + number)
        data = self._part("jpeg", slice(begin, end))
        try:
            pixels = decode_picture(data.numpy().tobytes())
        except UnreadablePicture as error:
            raise UserError(
                f"{self.path}: a frame of {self.items[k]['name']} is {error.reason}: {self._again}"
            ) from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _text(self, k: int) -> int:
        return int(self._index("text")[k])

    def _span(self, name: str, k: int) -> tuple[int, int]:
        ends = self._index(name)
        return int(ends[k - 1]) if k else 0, int(ends[k])

    def _index(self, name: str) -> Tensor:
        if name not in self._small:
            self._small[name] = self._part(name, slice(None))
        return self._small[name]

    def _part(self, name: str, where: int | slice) -> Tensor:
        try:
            return self._file.get_slice(name)[where]
        except (SafetensorError, IndexError) as error:
            raise UserError(f"{self.path} is damaged ({error}): {self._again}") from error

    def _finite(self, x: Tensor, k: int, what: str) -> Tensor:
        if not bool(x.isfinite().all()):
            raise UserError(f"{self.path}: the {what} of {self.items[k]['name']} are NaN or infinite: {self._again}")
        return x


