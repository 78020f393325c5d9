"""Ctrl-C at any moment of an update leaves a run that goes on exactly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_trainer import make_trainer, weights

from mcm.training.interrupt import held
from mcm.training.trainer import Trainer, checkpoints, saved_updates


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """A shell starts what it runs in the background with Ctrl-C ignored; here it is to be heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_within(trainer: Trainer, update: int, times: int = 1) -> None:
    """Ctrl-C, as the terminal sends it, after the clips of an update are drawn and before its weights move."""
    material = trainer.material

    def pressed(index: list[int], rng: torch.Generator, base: int) -> object:
        batch = material(index, rng, base)
        if trainer.update == update:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return batch

    trainer.material = pressed  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("times", "saved"), [(1, 4), (2, 2)])
def test_within_an_update_and_on_equals_uninterrupted(teachers: Path, tmp_path: Path, times: int, saved: int) -> None:
    whole, _ = make_trainer(teachers, tmp_path / "whole", updates=5)
    whole.run()
    first, _ = make_trainer(teachers, tmp_path / "parts", updates=5)
    interrupt_within(first, 3, times)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert saved_updates(first.folder) == saved  # once: the update is finished; twice: the last checkpoint
    second, _ = make_trainer(teachers, tmp_path / "parts", updates=5)
    second.run()
    ends = weights(whole), weights(second)
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_interrupted_while_it_goes_back_from_nan(teachers: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(teachers, tmp_path / "run", updates=5)
    material = trainer.material

    def broken(index: list[int], rng: torch.Generator, base: int) -> object:
        batch = material(index, rng, base)
        if trainer.update == 3:
            signal.raise_signal(signal.SIGINT)
            return batch._replace(z0=batch.z0 * float("nan"))
        return batch

    trainer.material = broken  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert (trainer.update, trainer.rollbacks) == (2, 1)
    assert saved_updates(trainer.folder) == 2
    again, _ = make_trainer(teachers, tmp_path / "run", updates=5)
    again.run()
    assert again.rollbacks == 1
    assert [p.stem for p in checkpoints(again.folder)][-1] == "update-0000005"


def test_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = []

    def pressed() -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        pressed()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="own"), held():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_is_held() -> None:
    seen: list[object] = []

    def work() -> None:
        with held():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
