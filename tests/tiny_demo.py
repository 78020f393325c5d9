"""The page with tiny systems, on a free port; one for all tests of a module."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from tiny import tiny_animatediff, tiny_controlnet
from tiny_students import tiny_student
from torch import Tensor

from mcm.app.following import Run
from mcm.app.making import Offer
from mcm.app.serve import served
from mcm.app.systems import load_systems
from mcm.app.wanted import Limits
from mcm.app.work import Workshop
from mcm.data.poses import write_poses
from mcm.generate import Maker
from mcm.pocket.sources import action, actions

SECRET = "never to be read from the page"


def make_place(place: Path) -> Path:
    """teacher/, learner/student/ (both tiny), controlnet/, wave.json, run/ (a log and a preview), secret.json."""
    tiny_animatediff(place / "teacher")
    tiny_student(place / "learner" / "student", place / "teacher")
    tiny_controlnet(place / "controlnet")
    poses = action("wave", 5)
    assert poses is not None
    write_poses(place / "wave.json", poses)
    (place / "secret.json").write_text(json.dumps(SECRET))
    (place / "run" / "previews").mkdir(parents=True)
    lines: list[dict[str, Any]] = [
        {"update": u, "lcm": 1 / u, "adversarial": 0.5, "rate/student": 1e-4, "seconds per update": 1.0}
        for u in range(1, 20)
    ]
    lines += [{"update": 19, "motion ratio": 0.4}, {"update": 19, "warning": "frozen motion", "words": "lower <it>"}]
    (place / "run" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"update": 20, "lc')
    sheet = Path(__file__).parent.parent / "docs" / "images" / "compare.png"  # a contact sheet, as training writes them
    shutil.copyfile(sheet, place / "run" / "previews" / "update-0000010.png")
    return place


@contextmanager
def page(place: Path, limits: Limits | None = None) -> Iterator[tuple[str, Workshop]]:
    """The address of the page of `make_place`'s systems, which follows its run; and who makes its videos."""
    workshop = Workshop(load_systems([str(place / "learner")]), str(place / "controlnet"))
    examples = ("a red puppet walks", "a blue puppet jumps")
    offer = Offer(workshop, limits or Limits(), actions(), examples, Run(place / "run"))
    with served(offer, port=0) as url:
        yield url, workshop


class Held:
    """Stands in the place of a maker's `glimpse`: from the second look on the work waits until it is let go.

    Then every look takes a while, as it does with models that are not tiny: a word to stop must have time to come.
    """

    def __init__(self, maker: Maker) -> None:
        self.maker, self.whole, self.looks, self.go = maker, maker.glimpse, 0, threading.Event()

    def __enter__(self) -> Self:
        self.maker.glimpse = self
        return self

    def __call__(self, z: Tensor, count: int = 4) -> np.ndarray:
        self.looks += 1
        if self.looks > 1:
            self.go.wait(120)
            time.sleep(0.3)
        return self.whole(z, count)

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.maker.glimpse = self.whole


def idle() -> None:
    """Waits until no request is at work."""
    for thread in threading.enumerate():
        if thread.name.startswith("mcm-demo"):
            thread.join(60)
            assert not thread.is_alive()
