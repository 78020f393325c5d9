"""The line of health, what the guard warns of and what it does not, and the way back from NaN."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import ADAPTER, Told, inside, make_material, recipe

import mcm.distill
from mcm.adversarial import AdversarialLoss
from mcm.distill import distill
from mcm.errors import UserError
from mcm.methods.base import Batch
from mcm.recipe import Recipe
from mcm.settings import settings
from mcm.training.health import DOMINANT_UPDATES, DRIFT, FROZEN, Guard, Trouble, Watch, balance, memory
from mcm.training.log import RunLog
from mcm.training.material import Material
from mcm.training.preview import compared
from mcm.training.trainer import _seed

METHOD = {"name": "mcm", "target_decay": 0.9}
UPDATES = 6


def made(method: dict[str, Any] | None = None, **changed: Any) -> Recipe:
    """A recipe that nobody runs."""
    method = {"name": "mcm"} if method is None else method
    data = {"videos": "clips/", "images": "pictures/" if method.get("adversary") == "pictures" else None}
    return Recipe.model_validate({"teacher": "t", "method": method, "data": data, **changed})


def causes(guard: Guard, lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(line["update"], trouble.cause) for line in lines for trouble in guard.look(line)]


def previews(name: str, *values: float) -> list[dict[str, Any]]:
    return [{"update": 100 * (k + 1), name: value} for k, value in enumerate(values)]


# What the guard warns of ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "when"),
    [
        ((0.49, 0.49), [200]),
        ((0.49, 0.51, 0.49), []),  # never twice in a row
        ((0.51, 0.51, 1.2), []),
        ((1.0, 0.2, 0.3, 0.1), [300]),  # told once
    ],
)
def test_frozen_motion(ratios: tuple[float, ...], when: list[int]) -> None:
    assert FROZEN == 0.5
    assert causes(Guard(made()), previews("motion ratio", *ratios)) == [(u, "frozen motion") for u in when]


@pytest.mark.parametrize("what", ["brightness", "saturation"])
@pytest.mark.parametrize(
    ("drifts", "when"),
    [
        ((0.11, 0.11), [200]),
        ((-0.11, -0.11), [200]),
        ((0.09, 0.09, -0.09, -0.09), []),
        ((0.11, -0.11, 0.11), []),  # to and fro is no drift
        ((0.11, 0.09, 0.11, 0.11, 0.11), [400]),
    ],
)
def test_drift_of_the_look(what: str, drifts: tuple[float, ...], when: list[int]) -> None:
    assert DRIFT == 0.1
    lines = previews(f"health/{what} drift", *drifts)
    assert causes(Guard(made()), lines) == [(u, f"{what} drift") for u in when]
    pictures = made({"name": "mcm", "adversary": "pictures"})
    assert causes(Guard(pictures), lines) == []  # there another look is what was asked for


def rounds(discriminator: float, adversarial: list[float], every: int = 10, **more: float) -> list[dict[str, Any]]:
    return [
        {
            "update": every * (k + 1),
            "discriminator": discriminator,
            "adversarial": a,
            "rate/discriminator": 1e-4,
            **more,
        }
        for k, a in enumerate(adversarial)
    ]


RISING = [1.0 + 0.02 * k for k in range(30)]


def test_discriminator_dominance() -> None:
    found = causes(Guard(made()), rounds(0.19, RISING))
    assert found == [(DOMINANT_UPDATES, "discriminator dominance")]
    assert causes(Guard(made()), rounds(0.21, RISING)) == []  # not near enough to 0
    assert causes(Guard(made()), rounds(2.0, RISING)) == []  # chance
    assert causes(Guard(made()), rounds(0.19, RISING[:19])) == []  # not long enough
    assert causes(Guard(made()), rounds(0.19, [1.2, 1.0] * 30)) == []  # the student holds its own
    assert causes(Guard(made()), rounds(0.19, RISING[::-1])) == []  # it is catching up
    broken = rounds(0.19, RISING)
    broken[10]["discriminator"] = 1.0
    assert causes(Guard(made()), broken) == []  # in a row, or not at all
    assert causes(Guard(made()), [*broken, *rounds(0.19, [1 + 0.1 * k for k in range(60)])[31:]]) != []


def test_dominance_with_a_rare_log_and_other_losses() -> None:
    rare = made(training={"log_every": 300})
    assert causes(Guard(rare), rounds(0.1, [1.0, 2.0, 3.0], every=300)) == [(600, "discriminator dominance")]
    bce = made({"name": "animatediff-lightning"})
    assert causes(Guard(bce), rounds(0.13, RISING)) == [(200, "discriminator dominance")]  # chance is 1.386
    assert causes(Guard(bce), rounds(0.15, RISING)) == []
    assert causes(Guard(made({"name": "mcm", "adversarial_loss": "wasserstein"})), rounds(-9.0, RISING)) == []
    unheard = [{k: v for k, v in line.items() if k != "adversarial"} for line in rounds(0.1, RISING)]
    assert causes(Guard(made()), unheard) == []  # before adversarial_start it shall learn to tell


def test_previews_between_do_not_end_what_runs() -> None:
    lines = rounds(0.19, RISING)
    lines.insert(10, {"update": 100, "motion ratio": 1.0})
    lines.insert(11, {"update": 100, "warning": "frozen motion", "words": "x"})
    assert causes(Guard(made()), lines) == [(200, "discriminator dominance")]


@pytest.mark.parametrize(
    "method",
    [
        {"name": "mcm"}, {"name": "mcm", "adversary": "none"}, {"name": "lcm"}, {"name": "frames"},
        {"name": "animatelcm"}, {"name": "animatediff-lightning"},
    ],
    ids=lambda method: "-".join(method.values()),
)  # fmt: skip
def test_the_words_name_settings_that_exist_and_matter(method: dict[str, Any]) -> None:
    known = dict(settings(Recipe))
    for data in ({"videos": "clips/"}, {"videos": "clips/", "fps": 8.0}):
        for augmentation in (0.5, 1.0):
            plan = made(method, data=data, discriminator={"augmentation": augmentation})
            guard = Guard(plan)
            lines = [*previews("motion ratio", 0.2, 0.2), *rounds(0.01, RISING)]
            for sign in (1, -1):
                guard.told.clear()
                drifts = previews("health/saturation drift", *[sign * 0.2] * 2)
                lines_now = [*lines, *drifts, *previews("health/brightness drift", *[sign * 0.2] * 2)]
                troubles: list[Trouble] = [t for line in lines_now for t in guard.look(line)]
                assert len(troubles) >= 3
                for trouble in troubles:
                    named = re.findall(
                        r"\b(?:method|data|student|optim|training|discriminator)\.[a-z_]+", trouble.words
                    )
                    assert named, trouble
                    assert set(named) <= known.keys()
                    for name in named:  # with its value in this recipe
                        (value,) = re.findall(rf"{re.escape(name)} \(now ([^)]+)\)", trouble.words)
                        wanted = guard.settings[name]
                        assert value == "not set" if wanted is None else float(value) == pytest.approx(wanted)
                    if method.get("adversary") == "none" or method["name"] in ("frames", "animatediff-lightning"):
                        assert "adversarial_weight" not in named  # nothing to weigh it against
                    assert "augmentation" not in trouble.words or augmentation < 1
                    assert ("data.fps" in named) <= ("fps" in data)


# The numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hinge", "bce"])
def test_balance_of_real_logits(kind: str) -> None:
    loss = AdversarialLoss(kind).discriminator
    zeros, sure = torch.zeros(3, 5), torch.full((3, 5), 50.0)
    assert balance(kind, float(loss(zeros, zeros))) == pytest.approx(0.0, abs=1e-6)
    assert balance(kind, float(loss(sure, -sure))) == pytest.approx(1.0)
    fooled = balance(kind, float(loss(-sure, sure)))
    assert fooled is not None
    assert fooled < 0
    assert balance("wasserstein", 0.3) is None


def test_memory_is_what_the_process_holds() -> None:
    before = memory(torch.device("cpu"))
    held = np.ones(200_000_000, dtype=np.uint8)
    assert memory(torch.device("cpu")) - before == pytest.approx(held.nbytes / 1e9, abs=0.05)
    assert before < psutil.virtual_memory().total / 1e9


def colour(red: float, green: float, blue: float) -> torch.Tensor:
    """A still clip of one colour, channels in [0, 1]."""
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1, 1).expand(2, 3, 3, 32, 32) * 2 - 1


def test_looks_compared() -> None:
    grey, red = colour(0.5, 0.5, 0.5), colour(0.9, 0.2, 0.4)
    found = compared(red, grey)
    assert "motion ratio" not in found  # the teacher stands still, there is nothing to divide by
    assert found["health/saturation drift"] == pytest.approx(0.7, abs=1e-6)
    luma = 0.299 * 0.9 + 0.587 * 0.2 + 0.114 * 0.4
    assert found["health/brightness drift"] == pytest.approx(luma - 0.5, abs=1e-6)
    rng = torch.Generator().manual_seed(0)
    base = torch.rand(1, 3, 1, 16, 16, generator=rng).repeat_interleave(4, 3).repeat_interleave(4, 4) * 2 - 1
    moving = torch.cat([base.roll(2 * k, dims=4) for k in range(4)], dim=2)
    still = base.expand(-1, -1, 4, -1, -1)
    assert compared(still, moving)["motion ratio"] == pytest.approx(0.0, abs=0.05)
    assert compared(moving, moving) == {
        "motion ratio": 1.0, "health/brightness drift": 0.0, "health/saturation drift": 0.0,
    }  # fmt: skip


class Measured:
    """Previews of known measures."""

    def __init__(self, *ratios: float) -> None:
        self.ratios = dict(enumerate(ratios, 1))

    def __call__(self, update: int) -> dict[str, float]:
        return {"motion ratio": self.ratios[update]}


def watch(folder: Path, begin: int = 0, ratios: tuple[float, ...] = (0.4, 0.3, 0.2)) -> Watch:
    plan = made(training={"updates": 3, "preview_every": 1, "batch": 4, "accumulation": 3})
    return Watch(plan, RunLog(folder, begin), Measured(*ratios))  # pyright: ignore[reportArgumentType]


def test_the_line_of_health(tmp_path: Path) -> None:
    one = watch(tmp_path)
    numbers = {"motion": 0.02, "adversarial": 0.1, "discriminator": 1.5, "gradient/student": 3.0, "rate/student": 1e-4}
    assert re.fullmatch(
        r"motion 0\.0200  adversarial 0\.1000  discriminator 1\.5000  balance 0\.25  6 clips/s  \d+\.\d GB",
        one.line(numbers, seconds=2.0),
    )
    one.after(1)
    assert "  motion ratio 0.40  " in one.line(numbers, seconds=2.0)
    one.numbers(1, {**numbers, "seconds per update": 0.5})
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (line["health/balance"], line["health/clips per second"]) == (0.25, 24.0)
    assert 0 < line["health/memory"] < 1000
    assert "balance" not in one.line({"consistency": 0.1}, 1.0)  # no discriminator, no balance


def test_warned_once_also_by_a_run_that_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def lines() -> list[tuple[int, str]]:
        found = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        return [(line["update"], line.get("warning", "")) for line in found]

    first = watch(tmp_path)
    first.after(1)
    assert not caplog.records
    second = watch(tmp_path, begin=1)  # knows of the first preview from the log
    assert "motion ratio 0.40" in second.line({}, 1.0)
    second.after(2)
    (record,) = caplog.records
    assert record.getMessage().startswith("warning at update 2, frozen motion: in the last two previews")
    third = watch(tmp_path, begin=2)
    third.after(3)
    assert len(caplog.records) == 1
    wanted = [(1, ""), (2, ""), (2, "frozen motion"), (3, "")]
    assert lines() == wanted

    third.rolled_back(1, "words")  # what came later is forgotten, and logged when it shows again, but not printed
    assert lines() == [(1, ""), (1, "not finite")]
    third.after(2)
    assert lines() == [(1, ""), (1, "not finite"), (2, ""), (2, "frozen motion")]
    assert [r.getMessage().split(":")[0] for r in caplog.records[1:]] == ["warning at update 1, not finite"]


# The way back from NaN --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def ill(monkeypatch: pytest.MonkeyPatch, update: int, times: int = 10**6) -> list[int]:
    """Clips that are NaN the first so many times that the update after `update` asks for them; a list of those."""
    failed: list[int] = []

    class Ill(Material):
        def __call__(self, index: list[int], rng: torch.Generator, base: int = 0) -> Batch:
            batch = super().__call__(index, rng, base)
            if len(failed) < times and rng.initial_seed() == _seed(5, update, 0):
                failed.append(update)
                return batch._replace(z0=torch.full_like(batch.z0, math.nan))
            return batch

    monkeypatch.setattr(mcm.distill, "Material", Ill)
    return failed


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {**load_file(out / ADAPTER), **load_file(out / "student" / "motion.safetensors")}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("save_every", "back", "how"),
    [(2, 2, KeyboardInterrupt), (100, 0, RuntimeError)],  # the first saves, the second leaves what there is
)
def test_nan_goes_back_once_and_on_with_half_the_rates(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, save_every: int,
    back: int, how: type[BaseException],
) -> None:  # fmt: skip
    """And a run that is interrupted after that, by hand or by a kill, ends to the bit as one that is not."""
    chosen = recipe(place, method=METHOD, training__updates=UPDATES, training__save_every=save_every)
    whole = tmp_path / "whole"
    with monkeypatch.context() as patch:
        failed = ill(patch, 3, times=1)
        distill(chosen, whole)
    assert failed == [3]
    lines = logged(whole)
    (warning,) = [line for line in lines if "warning" in line]
    assert (warning["update"], warning["warning"]) == (back, "not finite")
    assert re.match(rf"\w+ is nan at update 3, so the run went back to update {back} and", warning["words"])
    assert {"optim.lr", "optim.clip"} <= dict(settings(Recipe)).keys()
    assert "lower optim.lr or optim.clip" in warning["words"]
    assert [r.getMessage() for r in caplog.records].count(
        f"warning at update {back}, not finite: {warning['words']}"
    ) == 1
    steps = [line for line in lines if "warning" not in line]
    assert [line["update"] for line in steps] == list(range(1, UPDATES + 1))  # neither lost nor told twice
    for player in ("student", "discriminator"):
        rates = [line[f"rate/{player}"] for line in steps]
        lr = chosen.optim.lr if player == "student" else chosen.optim.discriminator_lr
        full = [lr * (0.01 + 0.495 * (1 + math.cos(math.pi * u / UPDATES))) for u in range(UPDATES)]
        assert rates == pytest.approx([rate / (1 if u < back else 2) for u, rate in enumerate(full)])

    out = tmp_path / "parts"

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "distilling" and done == 5 and any("warning" in line for line in logged(out)):
            raise how

    with monkeypatch.context() as patch:
        ill(patch, 3, times=1)
        with pytest.raises(how):
            distill(chosen, out, stop)
    distill(chosen, out)
    assert same(weights(out), weights(whole))

    def numbers(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if "second" not in k and "memory" not in k} for line in found]

    assert numbers(logged(out)) == numbers(lines)


def test_nan_that_comes_again_stops_with_a_clear_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, out = recipe(place, training__updates=UPDATES, training__save_every=2), tmp_path / "run"
    failed = ill(monkeypatch, 3)
    line = (
        r"training stopped at update 3: \w+ is nan, again, with half the learning rates; the checkpoints in .* are good"
    )
    for tries in (2, 3):  # the same command knows that it has been back, and stops at once
        with pytest.raises(UserError, match=line):
            distill(chosen, out)
        assert len(failed) == tries
    assert inside(out / "checkpoints") == {"update-0000002.safetensors"}
    assert not (out / "student").exists()


def test_a_run_that_never_saw_nan_has_its_full_rates(place: Path, tmp_path: Path) -> None:
    chosen = recipe(place, method={"name": "mcm", "adversary": "none"}, optim__schedule="constant")
    told = Told()
    distill(chosen, tmp_path / "run", told)
    lines = logged(tmp_path / "run")
    assert [line["rate/student"] for line in lines] == [1e-3, 1e-3]
    assert not any("warning" in line for line in lines)


def test_broken_weights_are_not_saved(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer may break weights though every gradient was finite."""
    calls: list[int] = []

    class Breaking(torch.optim.AdamW):
        def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().step(closure)
            calls.append(1)
            if len(calls) == 2:
                self.param_groups[0]["params"][0].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim, "AdamW", Breaking)
    chosen = recipe(place, method={"name": "mcm", "adversary": "none"}, training__updates=3)
    distill(chosen, tmp_path / "run")
    words = [line["words"] for line in logged(tmp_path / "run") if "warning" in line]
    assert len(words) == 1
    assert words[0].startswith("a weight is nan or infinite at update 2, so the run went back to update 1 ")
    assert len(calls) == 4
    assert all(bool(w.isfinite().all()) for w in weights(tmp_path / "run").values())


@pytest.mark.parametrize("name", ["animatelcm", "animatediff-lightning"])
def test_methods_in_stages_go_back_too(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    method = {"name": name} if name == "animatelcm" else {"name": name, "final_steps": 8, "solver_steps": 8}
    failed = ill(monkeypatch, 2, times=1)
    chosen = recipe(place, method=method, training__updates=4, training__save_every=2)
    distill(chosen, tmp_path / "run")
    assert failed == [2]
    lines = logged(tmp_path / "run")
    assert [(line["update"], line.get("warning")) for line in lines] == [
        (1, None), (2, None), (2, "not finite"), (3, None), (4, None),
    ]  # fmt: skip
