"""The doctor's report of a prepared source: what was found, how it is, what was left out and why, and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mcm.data.sheets import contact_sheet

SAMPLES = 12  # items on the contact sheet
_SAID = 48  # letters of a caption below a sample


class Measures:
    """What is counted of the used items, without keeping them: names of sizes and codecs, values of numbers."""

    def __init__(self) -> None:
        self.sizes: Counter[str] = Counter()
        self.codecs: Counter[str] = Counter()
        self.numbers: dict[str, Counter[float]] = {
            "seconds": Counter(),
            "frames per second": Counter(),
            "words of a caption": Counter(),
        }
        self.uncaptioned = 0

    def add(self, item: Mapping[str, Any]) -> None:
        """item: caption, size (H, W) as stored, and of films seconds, fps and codec."""
        self.sizes["x".join(map(str, item["size"]))] += 1
        words = len(item["caption"].split())
        self.numbers["words of a caption"][words] += 1
        self.uncaptioned += not words
        if "codec" in item:
            self.codecs[item["codec"]] += 1
            self.numbers["seconds"][round(item["seconds"], 2)] += 1
            self.numbers["frames per second"][round(item["fps"], 2)] += 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON: counts by size and codec, the most frequent first, and quantiles of the numbers."""
        return {
            "sizes (H x W)": dict(self.sizes.most_common()),
            "codecs": dict(self.codecs.most_common()),
            "without a caption": self.uncaptioned,
            **{name: quantiles(counts) for name, counts in self.numbers.items() if counts},
        }


def quantiles(counts: Counter[float]) -> dict[str, float]:
    """least, 5 %, median, 95 % and most of the values that `counts` counts."""
    shares = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}
    values, weights = [*counts.keys()], [*counts.values()]
    found = np.quantile(values, [*shares.values()], weights=weights, method="inverted_cdf")
    return dict(zip(shares, found.tolist(), strict=True))


def sample_numbers(count: int) -> list[int]:
    """Up to `SAMPLES` numbers below `count`, evenly spread."""
    shown = min(SAMPLES, count)
    return [round(k * (count - 1) / max(1, shown - 1)) for k in range(shown)]


def sample_sheet(path: Path, samples: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """A PNG with a row for each sample: its caption and its kept frames, uint8 (3, H, W) each."""
    width = max(frame.shape[-1] for _, frames in samples for frame in frames)
    rows = [[frame.permute(1, 2, 0) for frame in frames] for _, frames in samples]
    labels = [caption if len(caption) <= _SAID else caption[: _SAID - 3] + "..." for caption, _ in samples]
    contact_sheet(path, rows, [label or "(no caption)" for label in labels], scale=min(4.0, max(1.0, 128 / width)))
