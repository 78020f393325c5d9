"""The log of a run: `log.jsonl` for programs, a tracker's curves for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcm.training.trackers import open_tracker


class RunLog:
    """Writes numbers of updates; on resuming, what was logged after the checkpoint is dropped first.

    lines: what stands in log.jsonl from before, up to the update `begin`. tracker: see `trackers`.
    """

    def __init__(self, folder: Path, begin: int = 0, tracker: str = "tensorboard") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.tracker = folder / "log.jsonl", tracker
        self._begin(begin)

    def _begin(self, update: int) -> None:
        again = self.path.exists()
        kept = [line for line in self.path.read_text().splitlines() if _update(line) <= update] if again else []
        if again:
            self.path.write_text("".join(f"{line}\n" for line in kept))
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in kept]
        self._board = open_tracker(self.tracker, self.path.parent, update if again else None)

    def __call__(self, update: int, numbers: dict[str, float]) -> None:
        self._append({"update": update, **numbers})
        self._board.numbers(update, numbers)

    def warn(self, update: int, cause: str, words: str) -> None:
        """A line {"update", "warning": cause, "words"}."""
        self._append({"update": update, "warning": cause, "words": words})
        self._board.words(update, "warning", f"{cause}: {words}")

    def rewind(self, update: int) -> None:
        """Drop what was logged after `update`; `lines` is what is left."""
        self._board.close()
        self._begin(update)

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._board.close()


def _update(line: str) -> int:
    """The update of a line; a line cut short by a kill counts as later than everything."""
    try:
        return int(json.loads(line)["update"])
    except (ValueError, KeyError):
        return 2**62
