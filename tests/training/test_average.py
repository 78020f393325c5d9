"""The average of a student's weights over the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_run import ADAPTER, make_material, recipe
from torch import nn

from mcm.distill import distill
from mcm.errors import UserError
from mcm.training.average import WIDEST, PowerAverage, exponent
from mcm.training.checkpoint import load_state
from mcm.training.trainer import checkpoints


@given(st.floats(0.01, WIDEST))
def test_the_exponent_gives_the_width(width: float) -> None:
    gamma = exponent(width)
    mean = (gamma + 1) / (gamma + 2)  # of the density (gamma + 1) x^gamma on [0, 1]
    assert np.sqrt((gamma + 1) / (gamma + 3) - mean**2) == pytest.approx(width, rel=1e-6)


def test_a_width_of_a_tenth_is_the_papers_exponent() -> None:
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3])
def test_other_widths_are_refused(width: float) -> None:
    with pytest.raises(ValueError, match="width"):
        exponent(width)


def test_the_weights_of_each_update_count_as_stated() -> None:
    weight, n = nn.Parameter(torch.zeros(3, dtype=torch.float64)), 9
    average = PowerAverage({"w": weight}, 0.15)
    seen = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in range(1, n + 1):
        weight.data.copy_(seen[t - 1])
        average.update(t)
    t = torch.arange(1, n + 1, dtype=torch.float64)
    power = average.gamma + 1
    share = (t**power - (t - 1) ** power) / n**power
    assert share.sum().item() == pytest.approx(1)
    assert torch.allclose(average.values["w"].double(), (share[:, None] * seen).sum(0), atol=1e-6)


def test_the_first_weights_are_forgotten() -> None:
    weight = nn.Parameter(torch.full((2,), 1e6))
    average = PowerAverage({"w": weight}, 0.2)
    weight.data.fill_(1.0)
    average.update(1)
    assert average.values["w"].tolist() == [1.0, 1.0]


def test_handing_over_keeps_the_weights_precision() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    average = PowerAverage({"w": weight}, 0.2)
    weight.data.fill_(2.0)
    average.update(1)
    assert average.values["w"].dtype == torch.float32
    weight.data.fill_(5.0)
    average.hand_over()
    assert weight.tolist() == [2.0, 2.0]
    assert weight.dtype == torch.bfloat16


def test_another_runs_average_is_refused() -> None:
    average = PowerAverage({"w": nn.Parameter(torch.ones(2))}, 0.2)
    with pytest.raises(UserError, match="average: has"):
        average.load_state_dict({"w": torch.ones(2), "x": torch.ones(2)})


def test_a_run_hands_over_the_average_of_its_updates(tmp_path: Path) -> None:
    place = make_material(tmp_path / "material")
    settings = {"training__updates": 3, "training__keep": 9, "training__average": 0.2}
    distill(recipe(place, **settings), tmp_path / "run")
    power = exponent(0.2) + 1
    shares = [(t**power - (t - 1) ** power) / 3**power for t in (1, 2, 3)]
    states = [load_state(path)["student"] for path in checkpoints(tmp_path / "run" / "checkpoints")]
    made = load_file(tmp_path / "run" / ADAPTER)
    for name, value in made.items():
        key = f"student.{name.removeprefix('base_model.model.')}"
        wanted = sum(share * state[key] for share, state in zip(shares, states, strict=True))
        assert torch.allclose(value.float(), wanted, atol=1e-6), name
    moved = [(made[f"base_model.model.{k.removeprefix('student.')}"] - w).abs().max() for k, w in states[-1].items()]
    assert max(moved) > 1e-4  # it is not the last weights
