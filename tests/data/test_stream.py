"""The stream: every sample once an epoch, the same after a resume, whatever the batch size and the ranks."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcm.data.stream import Draw, Stream, sample_rng
from mcm.errors import UserError

LENGTH, BATCH, SEED, WORLD = st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**63), st.integers(1, 5)


def ranks(length: int, batch: int, seed: int, world: int) -> list[Stream]:
    return [Stream(length, batch, seed, rank, world) for rank in range(world)]


def step(streams: list[Stream]) -> list[Draw]:
    """One global batch: what all ranks draw, in the order of the ranks."""
    return [draw for stream in streams for draw in stream.next_draws()]


@given(LENGTH, BATCH, SEED, WORLD)
def test_every_index_comes_exactly_once_an_epoch(length, batch, seed, world):
    streams = ranks(length, batch, seed, world)
    drawn: list[Draw] = []
    while len(drawn) < 3 * length:
        drawn += step(streams)
    for epoch in range(3):
        assert sorted(draw.index for draw in drawn if draw.epoch == epoch) == list(range(length))
    assert [draw.epoch for draw in drawn] == [position // length for position in range(len(drawn))]


@given(LENGTH, BATCH, SEED, WORLD, st.integers(0, 12), st.integers(0, 12))
def test_a_resume_is_exact(length, batch, seed, world, before, after):
    whole, first = ranks(length, batch, seed, world), ranks(length, batch, seed, world)
    for _ in range(before):
        assert step(whole) == step(first)
    state = json.loads(json.dumps(first[0].state_dict()))
    resumed = ranks(length, batch, seed, world)
    for stream in resumed:
        stream.load_state_dict(state)
    for _ in range(after):
        assert step(whole) == step(resumed)


@given(LENGTH, BATCH, SEED, WORLD, BATCH, WORLD, st.integers(1, 10))
def test_other_ranks_and_batches_go_on_in_the_same_order(length, batch, seed, world, batch2, world2, before):
    single = Stream(length, 1, seed)
    streams = ranks(length, batch, seed, world)
    drawn = [draw for _ in range(before) for draw in step(streams)]
    others = ranks(length, batch2, seed, world2)
    for stream in others:
        stream.load_state_dict(streams[0].state_dict())
    for _ in range(3):
        drawn += step(others)
    assert drawn == [single.next_draws()[0] for _ in drawn]


def test_all_ranks_agree_on_the_state():
    streams = ranks(10, 3, 0, 2)
    step(streams)
    assert streams[0].state_dict() == streams[1].state_dict() == {"consumed": 6, "length": 10, "seed": 0}
    assert streams[0].epoch == 0
    step(streams)
    assert streams[0].epoch == 1


def test_epochs_and_seeds_are_shuffled_differently():
    stream = Stream(50, 50, 1)
    orders = [stream.next_batch() for _ in range(3)] + [Stream(50, 50, 2).next_batch()]
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(50)) not in orders
    places = Counter(Stream(4, 4, seed).next_batch()[0] for seed in range(400))
    assert all(60 < places[index] < 140 for index in range(4)), "the first place is not evenly given"


def test_the_order_does_not_touch_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Stream(50, 50, 1).next_batch()
    sample_rng(3, 4)
    assert torch.equal(torch.rand(1), expected)


def test_each_sample_has_a_generator_of_its_own():
    def draw(*counters: int) -> float:
        return float(torch.rand(1, generator=sample_rng(*counters)))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(1, 3, 2), draw(12, 3), draw(1, 23), draw(0, 0, 0), draw(-1)}) == 6


def test_another_source_or_seed_cannot_be_resumed():
    state = Stream(10, 2, 7).state_dict()
    with pytest.raises(UserError, match="length 10 from its source, this one has length 11"):
        Stream(11, 2, 7).load_state_dict(state)
    with pytest.raises(UserError, match=r"seed 7 .* seed 8"):
        Stream(10, 2, 8).load_state_dict(state)


@pytest.mark.parametrize("wrong", [(0, 1, 0), (1, 0, 0), (1, 1, 0, 1, 1), (1, 1, 0, -1, 2), (1, 1, 0, 0, 0)])
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        Stream(*wrong)
