"""Latents made once and kept: encoding films costs more than training on them needs to pay every epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mcm.data.encode import as_pixels, write_bytes
from mcm.data.sources import Clip
from mcm.errors import UserError

VERSION = 1  # of what stands in the files
_LATENTS, _INDEX = "latents.safetensors", "index.json"


class Codec(Protocol):
    """What is needed of a codec: video (B, 3, T, H, W) in [-1, 1] -> scaled latents (B, C, T, h, w)."""

    def encode(self, video: Tensor) -> Tensor: ...


def fingerprint(made_with: Mapping[str, Any]) -> str:
    """sha256 (hex) of everything the latents depend on: codec and its configuration, size, frames, stride,
    dtype ...

    The mapping must hold plain JSON values; their order does not matter.
    """
    text = json.dumps({"version": VERSION, **made_with}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def kept_frames(video: Tensor, count: int) -> Tensor:
    """`count` frames of a clip (3, T, H, W), evenly spread, the first and the last among them."""
    return video[:, torch.linspace(0, video.shape[1] - 1, count).round().long()]


class EncodedClips(Protocol):
    """What training reads, wherever it is kept: a `LatentSet` in memory, or a prepared folder.

    kept: real frames of each clip, 0 for none. captions: of the clips, in their order.
    """

    @property
    def captions(self) -> Iterable[str]: ...
    @property
    def kept(self) -> int: ...
    def __len__(self) -> int: ...

    def latents(self, index: Sequence[int]) -> Tensor:
        """Scaled latents (B, C, T, h, w)."""
        ...

    def said(self, index: Sequence[int]) -> list[str]:
        """Their captions."""
        ...

    def texts(self, index: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """What the text encoder says of them, hidden (B, L, D) and pooled (B, E); None where that is not kept."""
        ...

    def pooled(self, index: Sequence[int]) -> Tensor | None:
        """Of that the pooled part alone."""
        ...

    def empty_text(self) -> tuple[Tensor, Tensor] | None:
        """The same of the empty caption, (1, L, D) and (1, E)."""
        ...

    def frame(self, clip: int, k: int) -> Tensor:
        """Real frame k < kept of a clip, uint8 (3, H, W)."""
        ...


@dataclass(frozen=True)
class LatentClip:
    """z: scaled latents (C, T, h, w). frames: some real frames, uint8 (K, 3, H, W), or None."""

    z: Tensor
    caption: str
    name: str
    frames: Tensor | None


@dataclass
class LatentSet:
    """A source, encoded.

    z: scaled latents (N, C, T, h, w), float16 or float32. captions, names: N each. frames: uint8 (N, K, 3, H,
    W), K frames of each clip, evenly spread, untouched by the codec (the discriminator's real ones); None
    where none are kept. made_with: what the latents depend on, see `fingerprint`.
    """

    z: Tensor
    captions: list[str]
    names: list[str]
    frames: Tensor | None
    made_with: dict[str, Any]

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: int) -> LatentClip:
        frames = self.frames[index] if self.frames is not None else None
        return LatentClip(self.z[index], self.captions[index], self.names[index], frames)

    @property
    def kept(self) -> int:
        return 0 if self.frames is None else self.frames.shape[1]

    def latents(self, index: Sequence[int]) -> Tensor:
        return self.z[list(index)]

    def said(self, index: Sequence[int]) -> list[str]:
        return [self.captions[i] for i in index]

    def texts(self, index: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        return None

    def pooled(self, index: Sequence[int]) -> Tensor | None:
        return None

    def empty_text(self) -> tuple[Tensor, Tensor] | None:
        return None

    def frame(self, clip: int, k: int) -> Tensor:
        if self.frames is None:
            raise IndexError("no frames are kept")
        return self.frames[clip, k]

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        clips: Iterable[Clip],
        codec: Codec,
        made_with: Mapping[str, Any],
        *,
        keep_frames: int = 0,
        batch: int = 4,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
        progress: Callable[[int], None] | None = None,
    ) -> LatentSet:
        """Encode `clips` (a source, or any run of `Clip`s of one shape), `batch` at a time, into memory.

        A `VideoFolder` gives each readable clip once; its report tells of the others. keep_frames: K, see the
        class. progress(done) is called after each batch. Raises `UserError` if there are no clips, or one
        overflows `dtype`.
        """
        latents: list[Tensor] = []
        frames: list[Tensor] = []
        captions: list[str] = []
        names: list[str] = []
        waiting: list[Clip] = []

        def encode() -> None:
            video = torch.stack([clip.video for clip in waiting]).to(device)
            z = codec.encode(video).to("cpu", dtype)
            if not bool(z.isfinite().all()):
                raise UserError(
                    f"{waiting[0].name}, or one of the next: its latents are not finite in {dtype}"
                )
            latents.append(z)
            waiting.clear()
            if progress is not None:
                progress(len(captions))

        for clip in clips:
            waiting.append(clip)
            captions.append(clip.caption)
            names.append(clip.name)
            if keep_frames:
                frames.append(as_pixels(kept_frames(clip.video, keep_frames)).permute(0, 3, 1, 2))
            if len(waiting) == batch:
                encode()
        if waiting:
            encode()
        if not latents:
            raise UserError("there are no clips to encode: the source gave none that could be read")
        kept = torch.stack(frames).contiguous() if keep_frames else None
        # Contiguous, as `load` gives them: other strides mean other convolution kernels and other last bits, and
        # a run that goes on from the cache would not end as one that was never stopped.
        return cls(torch.cat(latents).contiguous(), captions, names, kept, dict(made_with))

    def save(self, folder: str | Path) -> None:
        """Write latents.safetensors and index.json. The index comes last: without it the folder counts as
        unfinished.

        Raises `UserError` where the folder cannot be written or the disk is full.
        """
        folder = Path(folder)
        mark = fingerprint(self.made_with)
        tensors = {"z": self.z.contiguous()}
        if self.frames is not None:
            tensors["frames"] = self.frames.contiguous()
        index = {
            "version": VERSION,
            "fingerprint": mark,
            "made_with": self.made_with,
            "count": len(self),
            "captions": self.captions,
            "names": self.names,
        }
        try:
            (folder / _INDEX).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
        write_bytes(folder / _LATENTS, save(tensors, {"fingerprint": mark}))
        write_bytes(folder / _INDEX, json.dumps(index, indent=1).encode())

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether `save` finished here."""
        return (Path(folder) / _INDEX).exists()

    @classmethod
    def load(cls, folder: str | Path, made_with: Mapping[str, Any]) -> LatentSet:
        """Read what `save` wrote. Raises `UserError` unless it is whole and was made exactly with
        `made_with`.
        """
        folder = Path(folder)
        again = f"; delete {folder} and encode again, or choose another folder"
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            kept, mark = dict(index["made_with"]), str(index["fingerprint"])
            version, captions, names = index["version"], list(index["captions"]), list(index["names"])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"no finished latents in {folder}: {_INDEX} is missing; encode again") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{folder / _INDEX} is damaged ({error}){again}") from error
        if version != VERSION:
            raise UserError(f"the latents in {folder} have version {version}, not {VERSION}{again}")
        if mark != fingerprint(made_with):
            raise UserError(f"the latents in {folder} are others: {difference(kept, made_with)}{again}")
        try:
            tensors = load_file(folder / _LATENTS)
            z = tensors["z"]
        except (SafetensorError, OSError, LookupError) as error:
            raise UserError(f"{folder / _LATENTS} is missing or damaged ({error}){again}") from error
        if not len(z) == len(captions) == len(names) == index["count"]:
            raise UserError(f"{folder} holds {len(z)} latents for {len(captions)} captions{again}")
        return cls(z, captions, names, tensors.get("frames"), kept)


def difference(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What differs, in words: "made with stride 2, asked for 8"."""
    keys = [key for key in sorted({*kept, *asked}) if kept.get(key) != asked.get(key)]
    said = [f"made with {key} {kept.get(key)!r}, asked for {asked.get(key)!r}" for key in keys]
    return "; ".join(said) or "the index was changed"
