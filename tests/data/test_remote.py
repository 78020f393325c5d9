"""Sources behind URLs: the same items as from the disk; what is read is kept, within a bound; and clear lines."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import types

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from mcm.data.remote import FileCache, is_url, remote_file, remote_files
from mcm.data.report import UnreadableError
from mcm.data.sources import PictureFolder, VideoFolder
from mcm.errors import UserError

SIZE = (32, 64)


@pytest.fixture
def memory(monkeypatch, tmp_path):
    monkeypatch.setenv("MCM_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return store


@pytest.fixture
def film(tmp_path, make_film) -> bytes:
    return make_film(tmp_path / "made.mp4", frames=20).read_bytes()


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The paths that were fetched from the memory store, in order."""
    paths: list[str] = []
    get = MemoryFileSystem.get_file

    def noted(self, rpath, lpath, **how):
        paths.append(rpath)
        return get(self, rpath, lpath, **how)

    monkeypatch.setattr(MemoryFileSystem, "get_file", noted)
    return paths


def tar_of(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in members.items():
            head = tarfile.TarInfo(name)
            head.size = len(data)
            tar.addfile(head, io.BytesIO(data))
    return made.getvalue()


def put(store, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        store.pipe_file(path, data)


def said(source) -> dict[str, str]:
    return {item.name: item.caption for item in source}


def test_a_folder_behind_a_url_is_a_folder(memory, film, tmp_path):
    files = {
        "a.mp4": film, "a.txt": b"beside", "sub/b.mp4": film, "sub/b.json": b'{"caption": "json"}', "c.mp4": film,
        "captions.csv": b"file,caption\nc.mp4,in the table\nd.mp4,gone\n", "mute.mp4": film, ".hidden.mp4": b"x",
        "bad.mp4": b"no film", "bad.txt": b"x", "latin.mp4": film, "latin.txt": b"M\xe4nner", "readme.md": b"x",
        "s.tar": tar_of({"1.mp4": film, "1.txt": b"in the tar"}),
    }  # fmt: skip
    put(memory, {f"/clips/{name}": data for name, data in files.items()})
    for name, data in files.items():
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(data)
    near = VideoFolder(tmp_path / "clips", 8, SIZE)
    far = VideoFolder("memory://clips", 8, SIZE)
    assert said(far) == said(near) == {
        "a.mp4": "beside", "c.mp4": "in the table", "s.tar/1.mp4": "in the tar", "sub/b.mp4": "json",
    }  # fmt: skip
    assert far.report.dropped == near.report.dropped
    assert dict(far.report.dropped).keys() == {"bad.mp4", "d.mp4", "latin.mp4", "mute.mp4"}
    assert far.report.where == "memory://clips"
    assert torch.equal(far[0].video, near[0].video)
    assert said(VideoFolder(f"file://{tmp_path}/clips", 8, SIZE)) == said(near)
    assert said(VideoFolder("memory://clips/", 8, SIZE)) == said(near)


def test_tars_and_tables_behind_a_url(memory, film, tmp_path):
    for k in (0, 2):
        put(memory, {f"/set/s-{k}.tar": tar_of({"1.mp4": film, "1.txt": f"of {k}".encode()})})
    webvid = b"videoid,contentUrl,duration,page_dir,name\n7,x,PT1S,p_q,one\n8,x,PT1S,p_q,two\n9,x,PT1S,p_q,three\n"
    put(memory, {"/set/w.csv": webvid, "/set/p_q/7.mp4": film, "/set/videos/p_q/8.mp4": film, "/set/x.mp4": film})
    assert said(VideoFolder("memory://set/s-0.tar", 8, SIZE)) == {"s-0.tar/1.mp4": "of 0"}
    shards = VideoFolder("memory://set/s-{0..2}.tar", 8, SIZE)
    assert said(shards) == {"s-0.tar/1.mp4": "of 0", "s-2.tar/1.mp4": "of 2"}
    assert shards.report.dropped == [("s-1.tar", "no such file")]
    table = VideoFolder("memory://set/w.csv", 8, SIZE)
    assert said(table) == {"p_q/7.mp4": "one", "videos/p_q/8.mp4": "two"}
    assert table.report.dropped == [("p_q/9.mp4", "no such file")]
    (tmp_path / "far.csv").write_text("file,caption\nmemory://set/x.mp4,from afar\nmemory://set/no.mp4,gone\n")
    local = VideoFolder(tmp_path / "far.csv", 8, SIZE)
    assert said(local) == {"memory://set/x.mp4": "from afar"}
    assert local.report.dropped == [("memory://set/no.mp4", "no such file")]


def test_pictures_behind_a_url(memory):
    made = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 0, 0)).save(made, "PNG")
    put(memory, {"/p/a.png": made.getvalue(), "/p/b.png": made.getvalue()[:-30], "/p/c.png": b""})
    source = PictureFolder("memory://p", (20, 30))
    assert [picture.name for picture in source] == ["a.png"]
    assert source.report.kinds() == "1 empty file, 1 truncated or damaged"


def test_what_is_read_is_fetched_once_and_again_when_it_changed(memory, film, make_film, tmp_path, fetched):
    put(memory, {"/f/a.mp4": film, "/f/a.txt": b"said"})
    VideoFolder("memory://f", 8, SIZE, check="decode")[0]
    VideoFolder("memory://f", 8, SIZE, check="decode")[0]
    assert sorted(fetched) == ["/f/a.mp4", "/f/a.txt"]
    assert [p.suffix for p in sorted((tmp_path / "cache").iterdir(), key=lambda p: p.suffix)] == [".mp4", ".txt"]
    put(memory, {"/f/a.mp4": make_film(tmp_path / "longer.mp4", frames=40).read_bytes()})
    assert said(VideoFolder("memory://f", 30, SIZE)) == {"a.mp4": "said"}
    assert fetched.count("/f/a.mp4") == 2


def test_the_cache_is_bounded_and_the_longest_unused_goes_first(memory, tmp_path, fetched):
    put(memory, {f"/c/{k}.bin": bytes([k]) * 400 for k in range(4)})
    cache = FileCache(tmp_path / "small", 1000)
    for k, order in enumerate((0, 1, 0, 2, 0, 1, 3)):
        with remote_file(f"memory://c/{order}.bin", cache).open() as stream:
            assert stream.read() == bytes([order]) * 400
        assert sum(p.stat().st_size for p in (tmp_path / "small").iterdir()) <= 1000
        for age, path in enumerate(sorted((tmp_path / "small").iterdir(), key=lambda p: p.stat().st_mtime_ns)):
            os.utime(path, ns=(0, k * 1000 + age))  # clear order, whatever the disk's clock
    assert [path[3] for path in fetched] == ["0", "1", "2", "1", "3"]
    assert not list((tmp_path / "small").glob(".*"))


def test_what_is_open_stays_readable_when_room_is_made(memory, tmp_path):
    put(memory, {"/c/a.bin": b"a" * 600, "/c/b.bin": b"b" * 600})
    cache = FileCache(tmp_path / "small", 1000)
    with remote_file("memory://c/a.bin", cache).open() as first:
        with remote_file("memory://c/b.bin", cache).open() as second:
            assert second.read() == b"b" * 600
        assert first.read() == b"a" * 600


def test_a_file_larger_than_the_cache_and_wrong_settings(memory, tmp_path, monkeypatch):
    put(memory, {"/c/a.tar": bytes(2000)})
    with pytest.raises(UserError, match=r"memory://c/a.tar has 2e-06 GB, more than .* \(1e-06 GB\): set MCM_CACHE_GB"):
        remote_file("memory://c/a.tar", FileCache(tmp_path / "c", 1000)).open()
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("MCM_CACHE_GB", wrong)
        with pytest.raises(UserError, match=f"MCM_CACHE_GB is '{wrong}': expected a number of gigabytes"):
            VideoFolder("memory://c", 8, SIZE)
    monkeypatch.setenv("MCM_CACHE_GB", "2.5")
    assert FileCache.of_user() == FileCache(tmp_path / "cache", 2_500_000_000)
    monkeypatch.delenv("MCM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert FileCache.of_user().folder == tmp_path / "xdg" / "mcm" / "remote"


def test_half_a_file_is_never_kept(memory, tmp_path, monkeypatch):
    put(memory, {"/c/a.bin": b"x" * 500})
    file = remote_file("memory://c/a.bin", FileCache(tmp_path / "c", 1000))

    def half(self, rpath, lpath, **how):
        with open(lpath, "wb") as out:
            out.write(b"x" * 200)

    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "get_file", half)
        with pytest.raises(UserError, match=r"cannot fetch memory://c/a\.bin: it broke off"):
            file.open()
    assert not list((tmp_path / "c").iterdir())
    with file.open() as stream:
        assert len(stream.read()) == 500


class BotoCoreError(Exception):
    """As botocore's: no OSError."""


@pytest.mark.parametrize("fault", [ConnectionError("the line\nis dead"), TimeoutError(), BotoCoreError("no keys")])
def test_a_store_that_fails_stops_with_one_clear_line(memory, monkeypatch, fault):
    library = types.ModuleType("botocore.exceptions")
    monkeypatch.setattr(library, "BotoCoreError", BotoCoreError, raising=False)
    monkeypatch.setitem(sys.modules, "botocore.exceptions", library)
    put(memory, {"/f/a.txt": b"said", "/f/a.mp4": b"x"})

    def fail(*_, **__):
        raise fault

    for method, words in [("get_file", "cannot fetch memory://f/a.txt"), ("find", "cannot list memory://f")]:
        monkeypatch.setattr(MemoryFileSystem, method, fail)
        with pytest.raises(UserError, match=f"{words}: .*check the name, your rights and the network") as caught:
            VideoFolder("memory://f", 8, SIZE)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    with pytest.raises(UserError, match=r"cannot look at memory://f/a\.tar"):
        VideoFolder("memory://f/a.tar", 8, SIZE)


def test_wrong_urls_are_one_clear_line(memory, monkeypatch):
    put(memory, {"/f/a.mp4": b"x"})
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    for url, words in {
        "s3://bucket/clips": r"s3://bucket/clips: a package is missing for s3://: .*s3fs",
        "nonsense://a/b": "nonsense://a/b: unknown protocol nonsense://; expected a folder",
        "memory://nowhere": "nothing at memory://nowhere: no such folder or file",
        "memory://f/a.mp4": "memory://f/a.mp4 is a file: expected a folder of videos",
        "memory://f/gone.tar": "1 videos, 0 usable: 1 no such file",
        "memory://f/gone.csv": "cannot read memory://f/gone.csv: no such file",
        "file:///no/where": "no such folder: /no/where",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            VideoFolder(url, 8, SIZE)
        assert "\n" not in str(caught.value)
    assert not is_url("C:/clips")
    assert not is_url("pocket:broadcast")
    with pytest.raises(UnreadableError, match="no such file"):
        remote_file("memory://f/gone.mp4").open()
    assert list(remote_files("memory://f/a.mp4")) == ["a.mp4"]
