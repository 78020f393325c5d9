"""The fingerprint knows a network by its configuration and its weights, in any precision, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from mcm.models.fingerprint import SIGNS, _signs, fingerprint


def network(seed: int = 0, channels: int = 8) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(block_out_channels=(channels,), norm_num_groups=4, sample_size=8)


def test_the_same_after_a_round_trip_in_half_precision(tmp_path: Path) -> None:
    first = network()
    mark = fingerprint(first)
    first.half().save_pretrained(tmp_path / "half")
    for kind in (torch.float16, torch.float32, torch.bfloat16):
        back = AutoencoderKL.from_pretrained(tmp_path / "half", torch_dtype=kind)
        assert fingerprint(back) == mark


def test_other_weights_or_another_configuration_are_another_network() -> None:
    mark = fingerprint(network())
    assert fingerprint(network(seed=1)) != mark
    assert fingerprint(network(channels=12)) != mark
    trained = network()
    with torch.no_grad():  # a short fine-tuning moves some weights across zero
        for p in trained.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)), alpha=0.01)
    assert fingerprint(trained) != mark


def test_origin_does_not_count() -> None:
    one, two = network(), network()
    two.register_to_config(_name_or_path="elsewhere")
    assert fingerprint(one) == fingerprint(two)


def test_the_last_weight_of_a_large_tensor_is_its_last() -> None:
    large = torch.zeros(2**24 + 4, dtype=torch.int8)
    large[-1] = -1
    assert _signs(large) == [False] * (SIGNS - 1) + [True]
