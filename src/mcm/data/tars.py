"""WebDataset tars: an index of where each member lies, so that any film or picture in them is read at random.

The layout is WebDataset's: members with the same key, their path up to the first dot of their name, are one
sample: `000001.mp4` or `000001.jpg` with `000001.txt` or `000001.json` beside it. Only headers and captions are
read for the index. Nothing is extracted, no link is followed, and pickles (.pyd, .pt, .npy ...) are never opened.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from mcm.data.captions import MAX_CAPTION, Entry, caption_in, shown
from mcm.data.files import File, Stored, opened, part
from mcm.data.report import UnreadableError
from mcm.errors import UserError

TAR_SUFFIXES = (".tar",)
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SPOKEN = ("txt", "text", "caption", "json")  # the fields with a caption, the first that a sample has counts
MAX_SHARDS = 100_000
_PICKLES = ("pyd", "pkl", "pickle", "pt", "pth", "npy", "npz")
_LONGEST_HEADER = 1 << 20  # bytes that one header may ask for: pax headers claim any length
_BLOCK = tarfile.BLOCKSIZE
# what tarfile raises for headers that contradict themselves
_ERRORS = (tarfile.TarError, OSError, ValueError, LookupError, OverflowError, EOFError)

Fault = tuple[str, str]


@dataclass(frozen=True)
class Member(Stored):
    """A file inside a tar: `size` bytes from `offset` on."""

    shard: File
    name: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        return part(opened(self.shard), self.name, self.offset, self.size)


@dataclass
class _Sample:
    """The members of one key. media: by their field, what stands after the key's dot. spoken: the caption or its
    fault, and how far back its field stands in `SPOKEN`.
    """

    media: dict[str, Member] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)
    spoken: tuple[int, str | None, str | None] = (len(SPOKEN), None, None)
    broken: bool = False


def is_tar(name: str) -> bool:
    """Whether a name is that of a tar, compressed or not."""
    return name.lower().endswith((*TAR_SUFFIXES, *PACKED_SUFFIXES))


def braces(pattern: str) -> list[str]:
    """The names that `shards-{0000..0009}.tar` or `{train,test}.tar` stands for, in order; digits are as many as the
    first number of a range has. Raises `UserError` for more than `MAX_SHARDS`.
    """
    choices: list[list[str]] = []
    count = 1
    for k, piece in enumerate(re.split(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", piece) if k % 2 else None
        first, last = (int(span[1]), int(span[2])) if span else (0, 0)
        count *= abs(last - first) + 1 if span else len(piece.split(",")) if k % 2 else 1
        if count > MAX_SHARDS:
            raise UserError(f"{pattern} stands for more than {MAX_SHARDS} names: give the folder of the shards")
        if span:
            step = 1 if last >= first else -1
            choices.append([str(n).zfill(len(span[1])) for n in range(first, last + step, step)])
        else:
            choices.append(piece.split(",") if k % 2 else [piece])
    return list(dict.fromkeys("".join(names) for names in itertools.product(*choices)))


def tar_entries(
    shard: File, name: str, suffixes: Collection[str], other: Collection[str] = ()
) -> tuple[list[Entry], list[Fault]]:
    """The items of one tar, in its order, and (member, reason) for all that cannot be used. Never raises.

    suffixes: of the films or pictures that are looked for, with their dot and in lower case. other: suffixes of
    what else a sample may be about; a caption or pickle whose sample is about nothing is a fault.
    """
    samples: dict[str, _Sample] = {}
    faults: list[Fault] = []
    try:
        with opened(shard) as stream:
            size = stream.seek(0, 2)
            for member in _members(stream, size, name, faults):
                where = f"{name}/{shown(member.name)}"
                key, ending = _key(member.name)
                if not key or member.isdir():
                    continue
                reason = _why_not(member)
                if reason is not None:
                    faults.append((where, reason))
                    samples.setdefault(key, _Sample()).broken = True
                    continue
                sample = samples.setdefault(key, _Sample())
                if member.offset_data + member.size > size:
                    faults.append((where, "truncated: the tar ends inside it"))
                    sample.broken = True
                elif ending in sample.fields:
                    faults.append((where, "duplicate: a member of this name stands before it, which is used"))
                else:
                    sample.fields.add(ending)
                    if PurePosixPath(f"x.{ending}").suffix in suffixes:
                        place = Member(shard, member.name, member.offset_data, member.size)
                        sample.media[ending] = place
                    elif ending in SPOKEN and SPOKEN.index(ending) < sample.spoken[0]:
                        sample.spoken = (SPOKEN.index(ending), *_caption(stream, member))
    except UnreadableError as error:
        return [], [(name, error.reason)]
    except _ERRORS as error:
        faults.append((name, f"damaged tar: {_words(error)}; the members before that are used"))
    found: list[Entry] = []
    for key, sample in samples.items():
        where = f"{name}/{shown(key)}"
        # a name with more dots has a longer field: it counts where the sample has no plain one
        plain = [ending for ending in sample.media if f".{ending}" in suffixes] or list(sample.media)
        for ending in plain[1:]:
            faults.append((f"{where}.{ending}", f"duplicate key: {shown(key)}.{plain[0]} has it too, which is used"))
        if plain:
            _, caption, fault = sample.spoken
            found.append(Entry(sample.media[plain[0]], f"{where}.{plain[0]}", caption, fault))
        elif not sample.broken and not {f".{ending}" for ending in sample.fields} & {*other}:
            lone = sorted(sample.fields & {*SPOKEN[:-1], *_PICKLES})
            if lone:
                kind = "pickles are never opened" if {*lone} & {*_PICKLES} else "no film or picture of its key"
                faults.append((where, f"only .{', .'.join(lone)}: {kind}"))
    return found, faults


def _members(stream: BinaryIO, size: int, name: str, faults: list[Fault]) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar. Where they break off, or are none, a fault says so."""
    stream.seek(0)
    head = stream.read(6)
    stream.seek(0)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
        raise UnreadableError("compressed tar: its members cannot be reached one by one; unpack it to a plain .tar")
    if not head:
        raise UnreadableError("empty file")
    last, end = "", -1
    try:
        with _Tar.open(fileobj=cast(BinaryIO, _Headers(stream)), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile remembers all of them, which a long tar would feel
                if member.size < 0 or member.offset < end:
                    raise tarfile.ReadError(f"the header of {shown(member.name)} is wrong")
                last = shown(member.name)
                yield member
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                if member.isreg() and member.offset_data + member.size > size:
                    return
                end = min(end, size)
            end = tar.offset
    except tarfile.ReadError as error:
        if not last:
            raise UnreadableError(f"not a tar, or damaged at its start: {_words(error)}") from error
        raise
    stream.seek(end)
    rest = stream.read(_BLOCK)
    if len(rest) < _BLOCK:
        what = f"after {last}" if last else "before any member"
        faults.append((name, f"truncated: the tar breaks off {what}, without its end mark; what came before is used"))
    elif any(rest):
        faults.append((name, f"damaged tar: no header after {last}; the members before that are used"))
    elif any(stream.read(_LONGEST_HEADER)):
        faults.append((name, "more after its end mark: joined tars are read up to there; give them one by one"))


class _Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]  # there, though no type stub says so


class _Headers:
    """What tarfile reads its headers from: the stream, but never much at once, whatever a header claims."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._stream.read(size)


def _key(name: str) -> tuple[str, str]:
    """(key, field): "a/b.c.mp4" is ("a/b", "c.mp4"). The key is "" for what is hidden, or about the set itself."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return "", ""
    return f"{folder}/{stem}" if folder else stem, ending.lower()


def _why_not(member: tarfile.TarInfo) -> str | None:
    """Why a member is passed over; None for a plain file within the tar."""
    if member.name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", member.name):
        return "unsafe member: its path is absolute"
    if ".." in re.split(r"[\\/]", member.name):
        return "unsafe member: its path climbs out of the tar"
    if member.issym() or member.islnk():
        return f"unsafe member: a link to {shown(member.linkname)}; links are not followed"
    if member.isdev():
        return "unsafe member: a device or pipe"
    if member.issparse() or not member.isreg():
        return "unsafe member: neither a plain file nor a folder"
    return "empty file" if member.size == 0 else None


def _caption(stream: BinaryIO, member: tarfile.TarInfo) -> tuple[str | None, str | None]:
    """(caption, None) or (None, its fault)."""
    stream.seek(member.offset_data)
    try:
        return caption_in(stream.read(min(member.size, MAX_CAPTION + 1)), PurePosixPath(member.name).name), None
    except UnreadableError as error:
        return None, error.reason


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
