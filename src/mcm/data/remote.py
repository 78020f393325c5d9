"""Sources behind a URL (s3://, hf://, gs://, memory:// ...), through fsspec: what is read is kept on the disk, bounded.

A film is decoded with many seeks, and a tar is read all over: each file is fetched whole, once, and read from the
disk. fsspec's own file caches know no bound, and write under the final name, where a kill leaves half a file that
the next run would take for a whole one. Ours is a folder of whole files; those that were not used for the longest
time go first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import sys
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from mcm.data.files import Stored
from mcm.data.report import UnreadableError
from mcm.errors import UserError
from mcm.output import cannot_write, whole

DEFAULT_GB = 20.0
_LOCAL = ("file", "local")
# what tells two versions of a file apart, in the words of the different stores
_VERSION = (
    "size", "ETag", "etag", "md5Hash", "content_md5", "blob_id", "mtime", "LastModified", "last_modified",
    "updated", "created",
)  # fmt: skip
# faults of the stores' own libraries that are no OSError; a library that raises one has been imported by then
_FOREIGN = (
    ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"), ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"), ("httpx", "HTTPError"),
)  # fmt: skip


def is_url(place: str) -> bool:
    """Whether `place` is a URL that fsspec is asked for."""
    return "://" in place


def local_path(place: str) -> Path | None:
    """The path that a file:// URL means; None for another URL, whose files are fetched."""
    parts = urlsplit(place)
    return Path(unquote(parts.netloc + parts.path)) if parts.scheme in _LOCAL else None


@dataclass(frozen=True)
class FileCache:
    """Whole copies of remote files in `folder`, together at most `limit` bytes."""

    folder: Path
    limit: int

    @classmethod
    def of_user(cls) -> FileCache:
        """~/.cache/mcm/remote with 20 GB, or what MCM_CACHE (a folder) and MCM_CACHE_GB say."""
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = os.environ.get("MCM_CACHE") or os.path.join(home, "mcm", "remote")
        said = os.environ.get("MCM_CACHE_GB") or str(DEFAULT_GB)
        try:
            limit = int(float(said) * 1e9)
        except (ValueError, OverflowError):
            limit = 0
        if limit <= 0:
            raise UserError(f"MCM_CACHE_GB is {said!r}: expected a number of gigabytes, such as {DEFAULT_GB:g}")
        return cls(Path(folder).expanduser(), limit)

    def open(self, file: RemoteFile) -> BinaryIO:
        """The local copy of `file`, fetched if it is not there. Raises `UnreadableError`, `UserError`."""
        info = file.look()
        version = repr([(key, str(info[key])) for key in _VERSION if info.get(key) is not None])
        digest = hashlib.sha256(f"{file.url}\n{version}".encode()).hexdigest()[:32]
        copy = self.folder / f"{digest}{PurePosixPath(file.name).suffix.lower()}"
        try:
            os.utime(copy)  # the time of its last use
            return open(copy, "rb")
        except FileNotFoundError:
            return self._fetch(file, copy, int(info.get("size") or 0))

    def _fetch(self, file: RemoteFile, copy: Path, size: int) -> BinaryIO:
        if size > self.limit:
            raise UserError(
                f"{file.url} has {size / 1e9:.3g} GB, more than the cache may hold ({self.limit / 1e9:.3g} GB): "
                "set MCM_CACHE_GB higher"
            )
        self._make_room(size)
        with whole(copy) as part:
            file.fetch(part)
            if size and part.stat().st_size != size:
                raise UserError(f"cannot fetch {file.url}: it broke off; run the command again")
            return open(part, "rb")  # held open: another process may make room before it is read

    def _make_room(self, size: int) -> None:
        """Remove the copies that were not used for the longest time until `size` more bytes fit."""
        kept: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                state = path.stat()
            except FileNotFoundError:
                continue  # another process makes room too
            kept.append((state.st_mtime, state.st_size, path))
        total = sum(held for _, held, _ in kept) + size
        for _, held, path in sorted(kept):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= held


@dataclass(frozen=True)
class RemoteFile(Stored):
    """A file of a store. info: what the store's listing says of it; empty where it has not been looked at."""

    url: str
    name: str
    path: str
    store: Any
    cache: FileCache
    info: dict[str, Any] = field(default_factory=dict, compare=False)

    def open(self) -> BinaryIO:
        return self.cache.open(self)

    def look(self) -> dict[str, Any]:
        """size, version ... Raises `UnreadableError` where there is no such file."""
        if not self.info:
            try:
                self.info.update(self.store.info(self.path))
            except FileNotFoundError as error:
                raise UnreadableError("no such file") from error
            except _errors() as error:
                raise _cannot("look at", self.url, error) from error
        return self.info

    def fetch(self, to: Path) -> None:
        """Write the whole file to `to`."""
        try:
            self.store.get_file(self.path, str(to))
        except FileNotFoundError as error:
            raise UnreadableError("no such file") from error
        except _errors() as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise cannot_write(to.parent, error) from error
            raise _cannot("fetch", self.url, error) from error


def remote_file(url: str, cache: FileCache | None = None) -> RemoteFile:
    """The one file at `url`; nothing is asked of the store yet. Raises `UserError` for an unknown protocol."""
    store, path = _store(url)
    return RemoteFile(url, posixpath.basename(path), path, store, cache or FileCache.of_user())


def remote_files(url: str) -> dict[str, RemoteFile]:
    """The files at and below `url` by their name relative to it, sorted; hidden ones are passed over.

    A URL of one file gives that file, under its own name. Raises `UserError` where there is nothing.
    """
    store, root = _store(url)
    root = root.rstrip("/")
    cache = FileCache.of_user()
    try:
        store.invalidate_cache()
        found: dict[str, dict[str, Any]] = store.find(root, detail=True)
    except FileNotFoundError:
        found = {}
    except _errors() as error:
        raise _cannot("list", url, error) from error
    files: dict[str, RemoteFile] = {}
    for path, info in sorted(found.items()):
        one = path == root
        name = posixpath.basename(path) if one else path.removeprefix(root).lstrip("/")
        if not any(piece.startswith(".") for piece in name.split("/")):
            whole_url = url if one else f"{url.rstrip('/')}/{name}"
            files[name] = RemoteFile(whole_url, posixpath.basename(name), path, store, cache, dict(info))
    if not files:
        raise UserError(f"nothing at {url}: no such folder or file, or it is empty")
    return files


def _store(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it)."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0]
    try:
        store, path = url_to_fs(url)
    except ImportError as error:
        said = known_implementations.get(protocol, {}).get("err", "") or str(error)
        raise UserError(f"{url}: a package is missing for {protocol}://: {said}") from error
    except _errors() as error:
        if protocol not in known_implementations and isinstance(error, ValueError):
            raise UserError(
                f"{url}: unknown protocol {protocol}://; expected a folder or file of this machine, or a URL such as "
                "s3://, gs://, hf://"
            ) from error
        raise _cannot("open", url, error) from error
    return store, str(path)


def _errors() -> tuple[type[BaseException], ...]:
    """What a store raises when it cannot be reached, or refuses."""
    foreign = [getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN]
    return (OSError, ValueError, *(kind for kind in foreign if isinstance(kind, type)))


def _cannot(what: str, url: str, error: BaseException) -> UserError:
    words = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return UserError(f"cannot {what} {url}: {words[:300]}; check the name, your rights and the network, and run again")
