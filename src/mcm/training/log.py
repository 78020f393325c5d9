"""The log of a run: `log.jsonl` for programs, TensorBoard for people."""

from __future__ import annotations

import json
from pathlib import Path


class RunLog:
    """Writes numbers of updates; on resuming, what was logged after the checkpoint is dropped first."""

    def __init__(self, folder: Path, begin: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _update(line) <= begin]
            self.path.write_text("".join(f"{line}\n" for line in lines))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=begin or None)

    def __call__(self, update: int, numbers: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"update": update, **numbers}) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(name, value, update)

    def close(self) -> None:
        self._board.close()


def _update(line: str) -> int:
    """The update of a line; a line cut short by a kill counts as later than everything."""
    try:
        return int(json.loads(line)["update"])
    except (ValueError, KeyError):
        return 2**62
