"""Order and threads of the suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import CHROMIUM

FIRST = "test_gaussian_teacher.py"


def pytest_configure() -> None:
    threads = os.environ.get("MCM_TEST_THREADS")
    if threads is not None:
        torch.set_num_threads(int(threads))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The argument of the paper runs before everything that is built on it."""
    items.sort(key=lambda item: item.path.name != FIRST)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by playwright, which tests that ask for it have imported or are skipped without."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: $MCM_SCREENSHOTS, or pytest's own folder."""
    folder = Path(os.environ.get("MCM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
