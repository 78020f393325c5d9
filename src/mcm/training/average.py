"""The average over training of the student's weights, which is what a run hands over where training.average says so.

Weights at a high learning rate wander about where they are going; their average is nearer to it than the last ones
are. The power-function average of Karras et al. (2024, arXiv 2312.02696, section 3.1) weighs the weights of update t
by t^gamma: it has forgotten the start at any length of the run, so one width serves short and long runs alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mcm.models.student import check_same

WIDEST = 0.28  # of a run; the mean of all of it, gamma = 0, has the relative width 1 / sqrt(12)


def exponent(width: float) -> float:
    """gamma of the average whose standard deviation over the run is `width` of its length (Karras et al., section 3.1).

    width: in (0, WIDEST]; 0.1 is gamma = 6.94. ValueError elsewhere.
    """
    if not 0 < width <= WIDEST:
        raise ValueError(f"the width of an average of weights is {width:g}: expected above 0 and up to {WIDEST:g}")
    # width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved for gamma
    found = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(found.real.max())


class PowerAverage:
    """Averages the given weights; it holds copies of its own, in float32.

    Call `update` after every update. After n of them the weights of update t count
    (t^(gamma + 1) - (t - 1)^(gamma + 1)) / n^(gamma + 1), the share of t^gamma that lies between t - 1 and t.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], width: float) -> None:
        self.weights, self.gamma = dict(weights), exponent(width)
        self.values = {name: weight.detach().float().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take in the weights after update number `count`, from 1."""
        kept = (1 - 1 / count) ** (self.gamma + 1)
        for name, weight in self.weights.items():
            self.values[name].lerp_(weight.float(), 1 - kept)

    @torch.no_grad()
    def hand_over(self) -> None:
        """Put the average in the weights' place, for good."""
        for name, weight in self.weights.items():
            weight.copy_(self.values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the weights' names."""
        return self.values

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What `state_dict` gave, to the bit. UserError where names or shapes differ."""
        check_same(self.values, state, "checkpoint, average")
        for name, value in self.values.items():
            value.copy_(state[name])
