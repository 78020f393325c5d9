"""The search for settings that fit, and the arithmetic of the time."""

from __future__ import annotations

import pytest
from tiny import tiny_animatediff, tiny_dinov2

from mcm.planning.cards import BANDWIDTH, CARDS, COMPUTE, card, seconds
from mcm.planning.fit import RESERVE, fitting
from mcm.planning.meter import Work
from mcm.planning.networks import Networks
from mcm.recipe import Recipe, apply_overrides
from mcm.settings import settings


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """Of a recipe on a tiny AnimateDiff, which takes checkpointing; steps are measured once."""
    root = tmp_path_factory.mktemp("fit")
    tiny_animatediff(root / "teacher")
    tiny_dinov2(root / "backbone")
    recipe = Recipe.model_validate({
        "teacher": str(root / "teacher"), "data": {"videos": "clips", "frames": 4, "size": (16, 16)},
        "student": {"rank": 8, "alpha": 4}, "training": {"batch": 2, "accumulation": 2},
        "discriminator": {"backbone": str(root / "backbone"), "head_width": 8},
    })  # fmt: skip
    return Networks(recipe, [], strict=True)


def test_what_fits_is_made_of_settings(networks: Networks) -> None:
    names = {name for name, _ in settings(Recipe)}
    whole = fitting(networks, 10**10, card("4090"))
    assert whole
    for fit in whole:
        assert fit.settings.keys() <= names
        words = fit.overrides.replace("--", "").split()
        changed = apply_overrides(networks.recipe, dict(zip(words[::2], words[1::2], strict=True)))
        assert changed.training.batch * changed.training.accumulation * fit.cards == 4
        assert changed.student.alpha / changed.student.rank == 0.5
        assert fit.why
    assert any(fit.overrides == "" and fit.why == "the recipe as it is" for fit in whole)
    assert not any("gradient_checkpointing" in fit.overrides for fit in whole)  # it goes without


def test_the_fastest_comes_first_and_more_memory_is_never_slower(networks: Networks) -> None:
    device = card("4090")
    largest = max(fit.peak for fit in fitting(networks, 10**10, device))
    best: list[float] = []
    for share in (0.001, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0, 1.5):
        available = int(share * largest / (1 - RESERVE)) + 2
        fits = fitting(networks, available, device)
        assert all(fit.peak <= available * (1 - RESERVE) for fit in fits)
        times = [fit.seconds for fit in fits if fit.seconds is not None]
        assert times == sorted(times)
        best.append(min(times, default=float("inf")))
    assert best == sorted(best, reverse=True)
    assert best[0] == float("inf") > best[-1]


def test_checkpointing_and_smaller_adapters_where_it_does_not_go_without(networks: Networks) -> None:
    smallest = min(networks.memory("lora", networks.step("lora", half, 1))["peak"] for half in ("fp32", "bf16"))
    again = networks.memory("lora", networks.step("lora", "bf16", 1, True), rank=2)["peak"]
    assert again < smallest
    found = fitting(networks, int(again / (1 - RESERVE)) + 2, card("4090"))
    assert [(fit.settings["student.rank"], fit.settings["training.gradient_checkpointing"]) for fit in found] == [
        (2, True)
    ]
    assert "activations do not fit" in found[0].why
    assert "rank 2" in found[0].why
    assert fitting(networks, int(again / (1 - RESERVE)) - 2, card("4090")) == []


def test_a_full_student_is_divided_among_cards_where_one_is_too_small(networks: Networks) -> None:
    full = Networks(apply_overrides(networks.recipe, {"student.kind": "full"}), [], strict=True)
    step = full.step("full", "fp32", 1)
    one, two, four = (full.memory("full", step, ranks=ranks) for ranks in (1, 2, 4))
    student = 4 * full.parameters("full")[1]["student"]
    assert one["optimizer"] - two["optimizer"] == student  # half of two moments
    assert one["weights"] - four["weights"] == 3 * student // 4
    assert four["weights and gradients of all ranks"] == student + 3 * student // 4
    step = full.step("full", "bf16", 1, checkpointing=True)
    two, four = (full.memory("full", step, ranks=ranks)["peak"] for ranks in (2, 4))
    assert four < two
    divided = [
        fit for fit in fitting(full, int(four / (1 - RESERVE)) + 2, None) if fit.settings["student.kind"] == "full"
    ]
    assert {fit.cards for fit in divided} == {4}
    assert "divided among 4" in divided[0].why
    assert divided[0].settings["training.accumulation"] == 1
    found = fitting(full, 10**10, None)
    assert {fit.cards for fit in found} == {1}
    assert {fit.settings["student.kind"] for fit in found} == {"full", "lora"}
    flops = [fit.work.flops for fit in found]
    assert flops == sorted(flops)


def test_a_card_without_bf16_gets_fp16(networks: Networks) -> None:
    found = fitting(networks, 10**10, card("v100"))
    assert {fit.settings["training.precision"] for fit in found} == {"fp32", "fp16"}
    with pytest.raises(ValueError, match="without bf16"):
        seconds(Work(1, 1, 1), card("v100"), "bf16")


def test_the_time_by_hand() -> None:
    work = Work(convolutions=156e12, products=312e12, moved=2039e9)
    a100 = CARDS["a100"]
    assert seconds(work, a100, "bf16") == pytest.approx((0.5 + 1) / COMPUTE + 1 / BANDWIDTH)
    assert seconds(work, a100, "fp32") == pytest.approx(
        (1 + 16) / COMPUTE + 1 / BANDWIDTH
    )  # TF32 in convolutions alone
    assert seconds(work.plus(work), a100, "fp16") == pytest.approx(2 * seconds(work, a100, "bf16"))
    assert seconds(work, CARDS["h100"], "bf16") < seconds(work, a100, "bf16") < seconds(work, CARDS["l4"], "bf16")
