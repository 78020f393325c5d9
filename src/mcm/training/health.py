"""The health of a run: a line of numbers for the terminal, and a guard that says in plain words what goes wrong.

The guard warns and never stops a run; what cannot be gone on with, NaN and infinity, is the trainer's to handle. It
sees nothing but the lines of the log, so that a run that goes on reads what stands there and warns as one that was
never interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import psutil
import torch

from mcm.output import flat
from mcm.recipe import Recipe
from mcm.training.log import RunLog
from mcm.training.preview import Previews
from mcm.training.trainer import losses

logger = logging.getLogger(__name__)

# A student that moves half as much as its teacher at the same seeds looks like a photograph that breathes. Two previews
# in a row, here and below: the ratio of a few prompts is noisy, and an early student has not learnt to move yet.
FROZEN = 0.5
# Brightness and saturation are means over all pixels of all previews, in [0, 1]. Student and teacher begin from the
# same noise, so their layouts agree and the means with them, to some hundredths where the student is good. A tenth is
# 25 of 255 levels, what everybody sees side by side.
DRIFT = 0.1
# A discriminator that can tell nothing has the loss of chance. Below a tenth of it nearly every logit is beyond the
# margin: hinge has no gradient left there for the discriminator, and its verdict tells the student nothing.
DOMINANT = 0.1
# Losses near 0 for some dozens of updates are usual while the two take turns. 200 is longer than anything that Adam's
# first moment (0.9: ten updates) still remembers, and shorter than the warm-up of the published recipes.
DOMINANT_UPDATES = 200
# By which share the student's adversarial loss must rise, from the first to the second half of those updates, to count
# as rising: means over 100 updates each scatter by less.
RISE = 0.05

_PREVIEW_DRIFTS = ("brightness", "saturation")


class Trouble(NamedTuple):
    """What is wrong, in two words that name the cause, and in a sentence that names the settings to change."""

    cause: str
    words: str


def balance(kind: str, loss: float) -> float | None:
    """How far the discriminator is ahead: 0 at chance, 1 where it is never wrong, negative where it is fooled.

    kind: of the adversarial loss; loss: the discriminator's. Logits of 0 give 2 for "hinge" and 2 log 2 for "bce";
    None for "wasserstein", whose logits have no scale.
    """
    chance = {"hinge": 2.0, "bce": 2 * math.log(2)}.get(kind)
    return None if chance is None else 1 - loss / chance


def memory(device: torch.device) -> float:
    """GB (10^9 bytes): the most that tensors took on the GPU so far, or what this process holds of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9


class Guard:
    """Looks at the lines of the log, in their order, and tells each cause once."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.settings = flat(recipe.to_dict())
        self.told: set[str] = set()
        self._running: dict[str, int] = {}  # previews in a row that show it
        self._span = max(DOMINANT_UPDATES, 2 * recipe.training.log_every)  # at least two lines
        self._won: list[tuple[int, float]] = []  # updates in a row that the discriminator wins, adversarial losses
        self._last = 0

    def look(self, line: Mapping[str, Any]) -> list[Trouble]:
        """What this line shows for the first time.

        line: {"update": number, name: value}: a method's losses, averaged over the updates since the last line, or
        what `Previews` measures.
        """
        found = [*self._previewed(line), *self._judged(line)]
        new = [trouble for trouble in found if trouble.cause not in self.told]
        self.told |= {trouble.cause for trouble in new}
        return new

    def _previewed(self, line: Mapping[str, Any]) -> list[Trouble]:
        found = []
        if (ratio := line.get("motion ratio")) is not None and self._twice("motion", ratio < FROZEN):
            found.append(self._frozen(ratio))
        if self.recipe.method.adversary == "pictures":
            return found  # there the frames shall look like the pictures, not like the teacher
        for what in _PREVIEW_DRIFTS:
            drift = line.get(f"health/{what} drift")
            for sign in (1, -1):
                if drift is not None and self._twice(f"{what} {sign}", sign * drift > DRIFT):
                    found.append(self._drifted(what, drift))
        return found

    def _twice(self, what: str, bad: bool) -> bool:
        self._running[what] = self._running.get(what, 0) + 1 if bad else 0
        return self._running[what] >= 2

    def _judged(self, line: Mapping[str, Any]) -> list[Trouble]:
        if "rate/discriminator" not in line:  # a line of previews or of a warning
            return []
        before, self._last = self._last, line["update"]
        loss, heard = line.get("discriminator"), line.get("adversarial")
        ahead = None if loss is None else balance(self.recipe.method.adversarial_loss, loss)
        if ahead is None or heard is None or ahead <= 1 - DOMINANT:
            self._won = []
            return []
        self._won = self._won or [(before, heard)]
        self._won.append((line["update"], heard))
        now = line["update"]
        while now - self._won[1][0] >= self._span:  # the last so many updates alone
            del self._won[0]
        if now - (begin := self._won[0][0]) < self._span:
            return []
        middle = (begin + now) / 2
        halves = [[v for u, v in self._won[1:] if (u > middle) == late] for late in (False, True)]
        first, second = (sum(half) / len(half) for half in halves)
        return [self._dominated(first, second)] if second - first > RISE * abs(first) else []

    # The words ----------------------------------------------------------------------------------------------------

    def _now(self, name: str) -> str:
        value = self.settings[name]
        return f"{name} (now {value:g})" if isinstance(value, int | float) else f"{name} (now {value or 'not set'})"

    @property
    def _weighed(self) -> bool:
        """Whether the adversarial loss stands beside another, so that its weight matters."""
        return self.recipe.method.adversary != "none" and self.recipe.method.name != "frames"

    def _frozen(self, ratio: float) -> Trouble:
        advice = [f"lower {self._now('optim.lr')}"]
        if self._weighed:  # single frames know nothing of motion, and what pleases their judge may stand still
            advice.insert(0, f"lower {self._now('method.adversarial_weight')}")
        if self.recipe.data.fps is None:
            advice.append(f"raise {self._now('data.stride')} if the clips themselves hardly move")
        else:
            advice.append(f"lower {self._now('data.fps')} if the clips themselves hardly move")
        return Trouble(
            "frozen motion",
            f"in the last two previews the student moved less than half as much as its teacher (motion ratio "
            f"{ratio:.2f}, 1 is the teacher's): {', or '.join(advice)}",
        )

    def _drifted(self, what: str, drift: float) -> Trouble:
        advice = [f"lower {self._now('optim.lr')}"]
        if self._weighed:
            advice.insert(0, f"lower {self._now('method.adversarial_weight')}")
        if drift > 0 and self.recipe.method.name != "frames":  # guidance burns colours in; "frames" asks no teacher
            advice.insert(0, f"lower {self._now('method.guidance_max')}")
        how = {"brightness": ("darker", "brighter"), "saturation": ("paler", "more saturated")}[what][drift > 0]
        return Trouble(
            f"{what} drift",
            f"in the last two previews the student's videos were {how} than its teacher's of the same seeds ({what} "
            f"{drift:+.2f} of the range): {', or '.join(advice)}; nothing is wrong if your clips look so",
        )

    def _dominated(self, first: float, second: float) -> Trouble:
        advice = [f"lower {self._now('optim.discriminator_lr')}"]
        if self.recipe.method.adversary != "none":  # of the discriminator of frames
            if self.recipe.discriminator.augmentation < 1:
                advice.append(f"raise {self._now('discriminator.augmentation')}")
            advice.append(f"raise {self._now('method.gradient_penalty')}")
        if self._weighed:
            advice.append(f"lower {self._now('method.adversarial_weight')}")
        return Trouble(
            "discriminator dominance",
            f"the discriminator has told real from made without fail for {self._span} updates, while the "
            f"student's adversarial loss rises ({first:.3g} to {second:.3g}): {', or '.join(advice)}",
        )


def previewed(recipe: Recipe, update: int) -> bool:
    """Whether previews are made after this update."""
    every = recipe.training.preview_every
    return every > 0 and (update % every == 0 or update == recipe.training.updates)


class Watch:
    """Looks after a run for the trainer: writes the log, makes the previews, warns, and tells the line of health."""

    def __init__(
        self, recipe: Recipe, log: RunLog, previews: Previews | None = None, device: torch.device | str = "cpu",
        clips: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        """clips: of an update, all ranks' together, once the run goes; by default what the recipe says for one."""
        self.recipe, self.log, self.previews, self.device = recipe, log, previews, torch.device(device)
        self.clips = clips or (lambda: recipe.training.batch * recipe.training.accumulation)
        self._said: set[str] = set()
        self._begin()

    def _begin(self) -> None:
        """A guard that has seen what stands in the log, and the last motion ratio there."""
        self.guard, self._ratio = Guard(self.recipe), None
        self._said |= {line["warning"] for line in self.log.lines if "warning" in line}
        for line in self.log.lines:
            self.guard.look(line)
            self._ratio = line.get("motion ratio", self._ratio)

    def numbers(self, update: int, numbers: dict[str, float]) -> None:
        """Log the means of the updates since the last time (`Trainer`'s `log`)."""
        seconds = numbers["seconds per update"]
        health = {"health/clips per second": self.clips() / seconds, "health/memory": memory(self.device)}
        if (ahead := self._balance(numbers)) is not None:
            health["health/balance"] = ahead
        self._write(update, numbers | health)

    def after(self, update: int) -> None:
        """Make and measure the previews where it is time (`Trainer`'s `after_update`)."""
        if self.previews is not None and previewed(self.recipe, update):
            measured = self.previews(update)
            self._ratio = measured.get("motion ratio", self._ratio)
            self._write(update, measured)

    def line(self, numbers: Mapping[str, float], seconds: float) -> str:
        """The line of health: losses, motion ratio of the last previews, balance, clips a second, memory.

        numbers: an update's; seconds: that updates take of late.
        """
        parts = [losses(numbers)]
        if self._ratio is not None:
            parts.append(f"motion ratio {self._ratio:.2f}")
        if (ahead := self._balance(numbers)) is not None:
            parts.append(f"balance {ahead:.2f}")
        return "  ".join([*parts, f"{self.clips() / seconds:.3g} clips/s", f"{memory(self.device):.1f} GB"])

    def rolled_back(self, update: int, words: str) -> None:
        """The run has gone back to `update`: forget what came later (`Trainer`'s `rolled_back`)."""
        self.log.rewind(update)
        self._begin()
        self._tell(update, Trouble("not finite", words))

    def _balance(self, numbers: Mapping[str, float]) -> float | None:
        loss = numbers.get("discriminator")
        return None if loss is None else balance(self.recipe.method.adversarial_loss, loss)

    def _write(self, update: int, numbers: dict[str, float]) -> None:
        self.log(update, numbers)
        for trouble in self.guard.look({"update": update, **numbers}):
            self._tell(update, trouble)

    def _tell(self, update: int, trouble: Trouble) -> None:
        self.log.warn(update, trouble.cause, trouble.words)
        if trouble.cause not in self._said:
            self._said.add(trouble.cause)
            logger.warning("warning at update %d, %s: %s", update, trouble.cause, trouble.words)
