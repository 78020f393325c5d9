"""What becomes of an item of a source: decoded, then encoded with a teacher's networks, for a prepared folder.

What it depends on is the fingerprint by which a run knows whether a folder fits it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcm.data.cache import fingerprint, kept_frames
from mcm.data.captions import Entry
from mcm.data.readers import ClipReader, PictureReader, Reader, check_entry
from mcm.data.report import UnreadableError
from mcm.data.shards import ShardDraft, as_jpeg
from mcm.data.video import VideoInfo
from mcm.models.fingerprint import fingerprint as network_fingerprint
from mcm.models.fingerprint import text_fingerprint
from mcm.models.video import VideoModel

Read = tuple[dict[str, Any], np.ndarray] | str  # measures and pixels of an item, or why it cannot be used


def made_with(model: VideoModel, reader: Reader) -> dict[str, Any]:
    """What prepared items depend on, as a run compares it: `model`'s networks and how items are read."""
    made: dict[str, Any] = {"text encoder": text_fingerprint(model.text), "size": list(reader.size)}
    if isinstance(reader, PictureReader):
        return made
    return {
        **made, "codec": network_fingerprint(model.codec.vae), "latents": "float16", "frames": reader.frames,
        "stride": reader.stride, "fps": reader.fps,
    }  # fmt: skip


def read_item(reader: Reader, entry: Entry) -> Read:
    """Decode one item; what a worker does. Measures: size (H, W) as stored, and of films seconds, fps and codec."""
    try:
        check_entry(entry, need_captions=isinstance(reader, ClipReader))
        look = reader.look(entry)
        pixels = reader.read(entry).numpy()
    except UnreadableError as error:
        return error.reason
    if isinstance(look, VideoInfo):
        return {"size": list(look.size), "seconds": look.seconds, "fps": look.fps, "codec": look.codec}, pixels
    return {"size": list(look)}, pixels


class ItemEncoder:
    """Encodes one item at a time: what stands beside it has no say in its last bit.

    kept: real frames of each clip that are kept as JPEG of `quality`. text_dtype: "float32" or "float16", of the text
    embeddings. Pictures keep their one frame and the pooled embedding alone, which is all that the adversary reads.
    """

    def __init__(self, model: VideoModel, reader: Reader, kept: int, quality: int, text_dtype: str) -> None:
        self.model, self.reader, self.quality = model, reader, quality
        self.pictures = isinstance(reader, PictureReader)
        self.kept = 1 if self.pictures else kept
        self.text_dtype: torch.dtype = getattr(torch, text_dtype)
        self.device = next(model.codec.parameters()).device
        self.made_with = {
            **made_with(model, reader), "text dtype": text_dtype, "kept frames": self.kept, "JPEG quality": quality
        }  # fmt: skip
        self.mark = fingerprint(self.made_with)

    @torch.no_grad()
    def add(self, draft: ShardDraft, entry: Entry, read: Read) -> None:
        """Put an item into the shard, or among what is left out."""
        if isinstance(read, str):
            draft.dropped.append((entry.name, read))
            return
        measures, array = read
        pixels, caption = torch.from_numpy(array), entry.caption or ""
        z = None
        if not self.pictures:
            z = self.model.codec.encode(pixels[None].to(self.device)).to("cpu", torch.float16)[0]
            if not bool(z.isfinite().all()):
                draft.dropped.append((entry.name, "not finite: its latents overflow float16"))
                return
        if not draft.has_text(caption):
            hidden, pooled = self.text(caption)
            if not bool(pooled.isfinite().all() and hidden.isfinite().all()):
                draft.dropped.append((entry.name, f"not finite: its text embedding overflows {self.text_dtype}"))
                return
            draft.add_text(caption, None if self.pictures else hidden, pooled)
        frames = pixels[:, None] if self.pictures else kept_frames(pixels, self.kept)
        jpegs = [as_jpeg(frame, self.quality) for frame in frames.unbind(1)]
        draft.add({"name": entry.name, "caption": caption, **measures}, z, jpegs)

    def text(self, caption: str) -> tuple[Tensor, Tensor]:
        """hidden (L, D) and pooled (E,)."""
        text = self.model.text([caption])
        return text.hidden[0].to("cpu", self.text_dtype), text.pooled[0].to("cpu", self.text_dtype)
