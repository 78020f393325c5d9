from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mcm.errors import UserError
from mcm.motion import LocalCorrelation, MotionRepresentation, motion_representation

NAMES = [
    "raw",
    "difference",
    "low",
    "high",
    "local-correlation",
    "global-correlation",
    "scaled-correlation",
    "learnable",
    "learnable-heavy",
]


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_every_representation_is_found_and_carries_gradients(name: str):
    phi = motion_representation(name, 3)
    assert isinstance(phi, MotionRepresentation)
    assert phi.name == name
    z = clips(2, 3, 4, 5, 6).requires_grad_()
    out = phi(z)
    assert out.shape[0] == 2
    out.square().sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_clips_of_a_batch_do_not_mix(name: str):
    phi, z = motion_representation(name, 3), clips(3, 3, 4, 5, 6)
    torch.testing.assert_close(phi(z)[1:2], phi(z[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_goes_in_and_comes_out(name: str):
    phi = motion_representation(name, 3).bfloat16()
    assert phi(clips(1, 3, 4, 5, 6).bfloat16()).dtype == torch.bfloat16


def test_unknown_name_is_named():
    with pytest.raises(UserError, match="did you mean 'difference'"):
        motion_representation("diference", 4)


def test_raw_is_the_latents():
    z = clips(2, 3, 4, 5, 6)
    assert torch.equal(motion_representation("raw", 3)(z), z)


def test_frame_difference_forgets_what_all_frames_share():
    phi, z, still = motion_representation("difference", 3), clips(2, 3, 4, 5, 6), clips(2, 3, 1, 5, 6, seed=1)
    assert phi(z).shape == (2, 3, 3, 5, 6)
    torch.testing.assert_close(phi(z + still), phi(z), atol=1e-6, rtol=1e-5)
    assert torch.equal(phi(z)[:, :, 1], z[:, :, 2] - z[:, :, 1])
    assert phi(still.expand(-1, -1, 4, -1, -1)).abs().max() == 0


@pytest.mark.parametrize(
    "name", ["difference", "local-correlation", "global-correlation", "scaled-correlation"]
)
def test_one_frame_has_no_motion(name: str):
    with pytest.raises(UserError, match="2 frames or more, got 1"):
        motion_representation(name, 3)(clips(1, 3, 1, 4, 4))


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 7, 9), (16, 4, 6), (2, 1, 1)])
def test_low_and_high_frequencies_make_the_whole(size: tuple[int, int, int]):
    z = clips(2, 3, *size)
    low, high = motion_representation("low", 3)(z), motion_representation("high", 3)(z)
    assert low.shape == z.shape
    torch.testing.assert_close(low + high, z, atol=1e-6, rtol=1e-5)


def test_a_constant_is_all_low():
    z = torch.full((1, 2, 8, 6, 6), 3.0)
    torch.testing.assert_close(motion_representation("low", 2)(z), z)
    assert motion_representation("high", 2)(z).abs().max() < 1e-5


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize(
    ("waves", "gain"), [(1, 1 / (1 + 0.5**8)), (2, 0.5), (4, 1 / (1 + 2**8)), (8, 1 / (1 + 4**8))]
)
def test_a_wave_passes_with_butterworths_gain(axis: int, waves: int, gain: float):
    """16 samples: Nyquist is 8 waves, the stop frequency 2 waves, where the gain is one half."""
    shape = [1, 1, 1, 1, 1]
    shape[axis] = 16
    wave = torch.cos(2 * torch.pi * waves * torch.arange(16) / 16).reshape(shape)
    z = wave.expand(*(16 if k >= 2 else 1 for k in range(5)))
    torch.testing.assert_close(motion_representation("low", 1)(z), gain * z, atol=1e-5, rtol=1e-4)


def test_the_filter_follows_a_change_of_shape():
    phi = motion_representation("low", 1)
    small, large = clips(1, 1, 4, 4, 4), clips(1, 1, 8, 4, 6)
    first = phi(small)
    assert phi(large).shape == large.shape
    torch.testing.assert_close(phi(small), first)
    assert "_gain" not in phi.state_dict()


def test_global_correlation_is_every_inner_product():
    z = clips(2, 3, 4, 5, 6)
    found = motion_representation("global-correlation", 3)(z)
    assert found.shape == (2, 3, 30, 30)
    flat = z.flatten(3)
    assert float(found[1, 2, 7, 22]) == pytest.approx(float(flat[1, :, 2, 7] @ flat[1, :, 3, 22]), abs=1e-5)
    scaled = motion_representation("scaled-correlation", 3)(z)
    torch.testing.assert_close(scaled * 3**0.5, found)


def test_scaled_correlation_has_unit_variance_whatever_the_channels():
    for channels in (4, 64):
        out = motion_representation("scaled-correlation", channels)(clips(1, channels, 4, 8, 8))
        assert float(out.var()) == pytest.approx(1.0, rel=0.3)  # unscaled: 4 and 64


@pytest.mark.parametrize("size", [(5, 6), (3, 20), (1, 1)])
def test_local_correlation_is_the_window_of_the_global_one(size: tuple[int, int]):
    height, width = size
    z = clips(2, 3, 3, height, width)
    local = motion_representation("local-correlation", 3)(z)
    every = motion_representation("global-correlation", 3)(z).unflatten(-1, size).unflatten(-3, size)
    radius = LocalCorrelation.radius
    reach = 2 * radius + 1
    assert local.shape == (2, 2, reach, reach, height, width)
    expected = torch.zeros_like(local)
    for y in range(height):
        for x in range(width):
            for v in range(max(0, y - radius), min(height, y + radius + 1)):
                for u in range(max(0, x - radius), min(width, x + radius + 1)):
                    expected[:, :, v - y + radius, u - x + radius, y, x] = every[:, :, y, x, v, u]
    torch.testing.assert_close(local, expected, atol=1e-5, rtol=1e-5)


def test_local_correlation_finds_a_shift():
    frame = nn.functional.normalize(clips(1, 16, 1, 12, 12), dim=1)
    z = torch.cat([frame, frame.roll((2, -3), (-2, -1))], 2)
    best = motion_representation("local-correlation", 16)(z)[0, 0, :, :, 5, 6].flatten().argmax()
    assert divmod(int(best), 15) == (7 + 2, 7 - 3)


@pytest.mark.parametrize("name", ["learnable", "learnable-heavy"])
def test_learnable_starts_as_the_identity_and_can_leave_it(name: str):
    phi, z = motion_representation(name, 4), clips(2, 4, 3, 5, 5)
    assert torch.equal(phi(z), z)
    phi(z).square().sum().backward()
    last = [p for p in phi.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert last  # the zero layer learns at once
    with torch.no_grad():
        for p in last:
            p -= 0.1 * p.grad
    assert not torch.allclose(phi(z), z)


@pytest.mark.parametrize("name", ["learnable", "learnable-heavy"])
def test_learnable_has_no_temporal_operation(name: str):
    phi, z = motion_representation(name, 4), clips(2, 4, 5, 6, 6)
    for p in phi.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(phi(z[:, :, order]), phi(z)[:, :, order], atol=1e-5, rtol=1e-5)


def test_the_light_one_is_pointwise_with_64_hidden_and_the_heavy_one_five_layers_of_3x3():
    def kernels(name: str) -> list[tuple[int, ...]]:
        return [m.weight.shape for m in motion_representation(name, 4).modules() if isinstance(m, nn.Conv2d)]

    assert kernels("learnable") == [(64, 4, 1, 1), (4, 64, 1, 1)]
    assert kernels("learnable-heavy") == [(64, 4, 3, 3), *[(64, 64, 3, 3)] * 3, (4, 64, 3, 3)]
