"""Preparing a source once for many runs: look at every item, encode what can be used, and say what was found.

The folder that it makes: prepare.json (the settings), listing.jsonl (the items, as they were found first),
shard-*.safetensors (what training reads), index.json (last: it makes the folder whole), report.json and samples.png.

A shard holds the usable ones of `shard_size` items in a row of the listing, and is written whole. So whatever is killed
whenever: shards that stand are done, the others are made again, and no item is lost or comes twice. Ranks take turns:
shard k is rank k % world's.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from mcm.data.captions import Entry
from mcm.data.doctor import Measures, sample_numbers, sample_sheet
from mcm.data.files import opened
from mcm.data.listing import items
from mcm.data.manifest import Manifest, write_manifest
from mcm.data.prepared import EMPTY, INDEX, SETTINGS, shard_name, write_index
from mcm.data.readers import ClipReader, PictureReader, Reader, wanted
from mcm.data.remote import RemoteFile, is_url
from mcm.data.report import SourceReport, UnreadableError
from mcm.data.shards import Shard, ShardDraft, header
from mcm.data.tars import Member
from mcm.data.workers import Workers
from mcm.encoding import ItemEncoder, Read, read_item
from mcm.errors import UserError
from mcm.models.video import VideoModel, load_video_model
from mcm.output import Progress, claim, holds, silent, write_json, write_tensors
from mcm.settings import Group, checked

LISTING, REPORT, SAMPLES = "listing.jsonl", "report.json", "samples.png"
_log = logging.getLogger("mcm")


class Preparation(Group):
    """What a prepared folder depends on; another value is another folder."""

    source: str = Field(min_length=1, description="folder, table, tar or URL of videos or pictures")
    teacher: str = Field(min_length=1, description="zoo name, diffusers folder or hub id")
    images: bool = Field(default=False, description="the source is pictures, not videos")
    frames: int | None = Field(default=None, ge=1, description="frames of a clip; none: as the teacher")
    size: tuple[int, int] | None = Field(default=None, description="height and width in pixels; none: as the teacher")
    stride: int | None = Field(default=None, ge=1, description="take every so manieth frame; not with fps")
    fps: float | None = Field(default=None, gt=0, description="frames a second that clips are read at; not with stride")
    shard_size: int = Field(default=64, ge=1, description="items of the source that one shard stands for")
    keep_frames: int = Field(default=4, ge=1, description="real frames kept of each clip, as JPEG")
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="of the kept frames")
    text_dtype: Literal["float32", "float16"] = Field(default="float32", description="of the text embeddings")

    @model_validator(mode="after")
    def _consistent(self) -> Preparation:
        if self.stride is not None and self.fps is not None:
            raise ValueError(f"stride is {self.stride} and fps is {self.fps:g}: give one of them")
        if self.images and (self.frames or self.stride or self.fps):
            raise ValueError("images have no frames, stride or fps: leave these out")
        return self


def prepare(
    source: str | Path,
    out: str | Path,
    teacher: str | Path,
    *,
    workers: int = 0,
    limit: float = 120.0,
    rank: int | None = None,
    world: int | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Prepare a source for training with a teacher; `mcm.distill` takes the folder as videos (or images).

    The same call again goes on where it was stopped, and does nothing where it is done.

    Args:
        source: see `Preparation`, which names the other settings: images, frames, size, stride, fps, shard_size ...
        out: the folder; it may hold this very preparation, but no other.
        workers: processes that decode; 0: this one does. (A script that gives more needs the usual
            `if __name__ == "__main__"`, as its module is imported in each.)
        limit: seconds after which a worker's film is given up and left out.
        rank, world: which share of the shards to make; by default from RANK and WORLD_SIZE, as torchrun sets them.

    Returns the report as in report.json, with "finished"; where other ranks are still at work, only how far it is.

    Raises:
        UserError: for settings, sources or places that cannot be used. One item that cannot be used is left out.
    """
    rank, world = _ranks(rank, world)
    place = str(source) if is_url(str(source)) else os.path.abspath(os.path.expanduser(str(source)))
    chosen = checked(Preparation, {"source": place, "teacher": str(teacher), **settings})
    if str(source).startswith("pocket:"):
        raise UserError(f"{source} is rendered when it is read: nothing to prepare, give it to `mcm distill` as it is")
    folder = Path(out).expanduser()
    listing = _listing(folder, chosen, progress)
    shards = [folder / shard_name(k) for k in range(-(-len(listing) // chosen.shard_size))]
    if all(path.is_file() for path in (folder / INDEX, folder / REPORT, *shards)):
        return {"finished": True, **json.loads((folder / REPORT).read_text(encoding="utf-8"))}

    progress("loading the teacher", 0, 0)
    encoder = _encoder(chosen, load_video_model(chosen.teacher, _device()))
    mine = [k for k in range(len(shards)) if k % world == rank]
    missing = [k for k in mine if not _stands(shards[k], encoder.mark, listing.digest)]
    if missing:
        (folder / INDEX).unlink(missing_ok=True)
        _work(folder, chosen, encoder, listing, missing, len(mine), workers, limit, progress)
    standing = sum(path.is_file() for path in shards)
    if standing < len(shards):
        return {"finished": False, "shards": len(shards), "made": standing, "rank": rank, "world": world}
    return {"finished": True, **_finish(folder, chosen, encoder, listing, shards)}


def _ranks(rank: int | None, world: int | None) -> tuple[int, int]:
    try:
        rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        world = int(os.environ.get("WORLD_SIZE", "1")) if world is None else world
    except ValueError as error:
        raise UserError(f"RANK and WORLD_SIZE must be whole numbers: {error}") from error
    if not 0 <= rank < world:
        raise UserError(f"rank {rank} of a world of {world}: expected a rank from 0 to {world - 1}")
    return rank, world


def _device() -> torch.device:
    """This rank's accelerator where there is one. (accelerate's choice would connect the ranks, who need not wait.)"""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    return torch.device(str(kind), int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())


def _listing(folder: Path, chosen: Preparation, progress: Progress) -> Manifest:
    """The list of items, made if it is not there: the first rank to have it decides for all. The folder is claimed."""
    settings = chosen.model_dump(mode="json")
    if not (holds(folder, settings, SETTINGS) and (folder / LISTING).exists()):
        reader = _reader(chosen, 1, (1, 1))
        progress(f"looking for {reader.what}", 0, 0)
        found, bad = items(chosen.source, wanted(reader))
        if not found:
            raise SourceReport(len(bad), 0, bad, reader.what, chosen.source).nothing(reader.layout)
        claim(folder, settings, SETTINGS)
        write_manifest(folder / LISTING, found, bad)
    return Manifest(folder / LISTING)


def _reader(chosen: Preparation, frames: int, size: tuple[int, int]) -> Reader:
    if chosen.images:
        return PictureReader(size)
    return ClipReader(frames, size, chosen.stride, chosen.fps)


def _encoder(chosen: Preparation, model: VideoModel) -> ItemEncoder:
    frames, size = chosen.frames or model.frames, chosen.size or model.size
    model.check_geometry(frames, size)
    if not chosen.images and chosen.keep_frames > frames:
        raise UserError(f"keep_frames is {chosen.keep_frames}, but a clip has {frames} frames")
    reader = _reader(chosen, frames, size)
    return ItemEncoder(model, reader, chosen.keep_frames, chosen.jpeg_quality, chosen.text_dtype)


# The shards -----------------------------------------------------------------------------------------------------------


def _at_hand(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same; a tar behind a URL is fetched before its members are given to workers, who would each fetch it."""
    fetched = None
    for entry in entries:
        if isinstance(entry.path, Member) and entry.path.shard != fetched and isinstance(entry.path.shard, RemoteFile):
            fetched = entry.path.shard
            try:
                opened(fetched).close()
            except UnreadableError as error:
                _log.warning("%s: %s", fetched.url, error.reason)  # its members will say the same, each as left out
        yield entry


def _lost(entry: Entry, why: str) -> Read:
    return why


def _opened(path: Path, mark: str, listing: str) -> Shard:
    """A shard of this very preparation. UserError where it was made with something else, or is damaged."""
    shard = Shard(path)
    _check_made_alike(shard, mark, listing)
    return shard


def _check_made_alike(shard: Shard, mark: str, listing: str) -> None:
    if (shard.mark, shard.listing) != (mark, listing):
        raise UserError(f"{shard.path} was made with another teacher or list of items: choose another --out")


def _stands(path: Path, mark: str, listing: str) -> bool:
    """Whether a shard is there and whole; one that is damaged is made anew. UserError for another run's."""
    if not path.exists():
        return False
    try:
        shard = Shard(path)
    except UserError as error:
        _log.warning("%s is damaged and is made anew (%s)", path, error.__cause__)
        return False
    _check_made_alike(shard, mark, listing)
    return True


def _work(
    folder: Path, chosen: Preparation, encoder: ItemEncoder, listing: Manifest, missing: list[int], share: int,
    workers: int, limit: float, progress: Progress,
) -> None:  # fmt: skip
    """Make the missing shards, one after the other, decoding ahead."""
    hidden, pooled = encoder.text("")
    about = header({"fingerprint": encoder.mark})
    write_tensors(folder / EMPTY, {"hidden": hidden[None], "pooled": pooled[None]}, about)
    done, left_out = (share - len(missing)) * chosen.shard_size, 0
    total = min(len(listing), share * chosen.shard_size)

    def spans() -> Iterator[range]:
        for k in missing:
            yield range(k * chosen.shard_size, min((k + 1) * chosen.shard_size, len(listing)))

    with Workers(partial(read_item, encoder.reader), workers, limit, _lost) as pool:
        results = pool.map(_at_hand(listing[i] for span in spans() for i in span))
        for k, span in zip(missing, spans(), strict=True):
            draft = ShardDraft()
            for i in span:
                encoder.add(draft, listing[i], next(results))
                done += 1
                said = left_out + len(draft.dropped)
                progress("preparing", min(done, total), total, f"{said} left out" if said else "")
            left_out += len(draft.dropped)
            for old in folder.glob(f".{Path(shard_name(k)).stem}.*.partial*"):  # of a process that was killed
                old.unlink(missing_ok=True)
            draft.write(folder / shard_name(k), encoder.mark, listing.digest)


# The end --------------------------------------------------------------------------------------------------------------


def _finish(
    folder: Path, chosen: Preparation, encoder: ItemEncoder, listing: Manifest, paths: list[Path]
) -> dict[str, Any]:
    """Merge the shards of all ranks: report, samples, and last the index."""
    measures, dropped, files = Measures(), list(listing.faults), []
    for path in paths:
        shard = _opened(path, encoder.mark, listing.digest)
        dropped += shard.dropped
        files.append((path, len(shard)))
        for item in shard.items:
            measures.add(item)
    used = sum(count for _, count in files)
    reader = encoder.reader
    found = SourceReport(used + len(dropped), used, dropped, reader.what, chosen.source)
    if not used:
        raise found.nothing(reader.layout)
    _samples(folder / SAMPLES, paths, [count for _, count in files], encoder.kept)
    report = {
        "source": chosen.source, "what": reader.what, "teacher": chosen.teacher,
        "found": found.found, "used": used, "left out": found.counts(), **measures.as_dict(),
        "made with": encoder.made_with, "shards": len(files), "bytes": sum(path.stat().st_size for path, _ in files),
        "dropped": [{"name": name, "reason": why} for name, why in dropped],
    }  # fmt: skip
    write_json(folder / REPORT, report)
    kind = "images" if chosen.images else "videos"
    write_index(folder, kind, chosen.teacher, encoder.made_with, encoder.kept, files)
    return report


def _samples(path: Path, paths: list[Path], counts: list[int], kept: int) -> None:
    """A contact sheet of items spread over all shards; the shards that are needed are opened one at a time."""
    samples, begin = [], 0
    wanted = sample_numbers(sum(counts))
    for shard_path, count in zip(paths, counts, strict=True):
        inside = [number - begin for number in wanted if begin <= number < begin + count]
        if inside:
            shard = Shard(shard_path)
            samples += [(shard.items[k]["caption"], [shard.frame(k, n, kept) for n in range(kept)]) for k in inside]
        begin += count
    sample_sheet(path, samples)
