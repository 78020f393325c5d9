"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mcm.errors import UserError
from mcm.output import whole, write_tensors, write_text


@pytest.fixture(params=[0o022, 0o077, 0o002])
def mask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_permissions_of_the_umask(tmp_path: Path, mask: int) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"about": "{}"})
    write_text(tmp_path / "a.txt", "words")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [1, 1]


def test_a_block_that_writes_nothing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(UserError, match=r"a\.txt"), whole(path):
        pass
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        with whole(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())
