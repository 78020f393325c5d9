"""Order and threads of the suite."""

from __future__ import annotations

import os

import pytest
import torch

FIRST = "test_gaussian_teacher.py"


def pytest_configure() -> None:
    threads = os.environ.get("MCM_TEST_THREADS")
    if threads is not None:
        torch.set_num_threads(int(threads))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The argument of the paper runs before everything that is built on it."""
    items.sort(key=lambda item: item.path.name != FIRST)
