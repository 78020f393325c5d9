"""Where a run's curves go besides log.jsonl: TensorBoard, Weights & Biases, trackio, or nowhere."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mcm.errors import UserError


class Tracker(Protocol):
    """Is told the numbers of updates, and warnings in words."""

    def numbers(self, update: int, numbers: Mapping[str, float]) -> None: ...
    def words(self, update: int, name: str, words: str) -> None: ...
    def close(self) -> None: ...


def open_tracker(name: str, folder: Path, begin: int | None = None) -> Tracker:
    """The tracker called `name`, for the run in `folder`; begin: the update that it goes on from, None for a new run.

    UserError where its package is missing.
    """
    if name == "tensorboard":
        return _TensorBoard(folder / "tensorboard", begin)
    return _Online(name, folder) if name != "none" else _Nowhere()


class _Nowhere:
    def numbers(self, update: int, numbers: Mapping[str, float]) -> None:
        return

    def words(self, update: int, name: str, words: str) -> None:
        return

    def close(self) -> None:
        return


class _TensorBoard:
    def __init__(self, folder: Path, begin: int | None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # it hides what it has from this step on
        self._board = SummaryWriter(str(folder), purge_step=begin + 1 if begin is not None else None)

    def numbers(self, update: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._board.add_scalar(name, value, update)

    def words(self, update: int, name: str, words: str) -> None:
        self._board.add_text(name, words, update)

    def close(self) -> None:
        self._board.close()


class _Online:
    """wandb or trackio, which are called alike. The update is a number among the others: their own count of steps never
    goes back, as a run that was interrupted does."""

    def __init__(self, name: str, folder: Path) -> None:
        try:
            library: Any = importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f'training.tracker is "{name}", but the package {name} is not installed: pip install '
                f'"motion-consistency[{name}]", or use "tensorboard" or "none"'
            ) from error
        self._library = library
        library.init(project="mcm", name=folder.resolve().name, config={"folder": str(folder)})

    def numbers(self, update: int, numbers: Mapping[str, float]) -> None:
        self._library.log({"update": update, **numbers})

    def words(self, update: int, name: str, words: str) -> None:
        self._library.log({"update": update, name: words})

    def close(self) -> None:
        self._library.finish()
