"""The frame discriminator and the frozen features under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_dinov2
from torch.nn import functional as F

from mcm.adversarial import AdversarialLoss, gradient_penalty
from mcm.errors import UserError
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.features import FrozenFeatures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dinov2(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def features(folder: Path) -> FrozenFeatures:
    return FrozenFeatures.load(folder)


def frames(count: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def texts(count: int = 3) -> torch.Tensor:
    return 5 * torch.randn(count, 8, generator=torch.Generator().manual_seed(9))


def judge(features: FrozenFeatures, **settings: bool) -> FrameDiscriminator:
    return FrameDiscriminator(features, 8, head_width=16, rng=torch.Generator().manual_seed(1), **settings)


def test_features_are_the_backbones_patch_tokens(features: FrozenFeatures) -> None:
    found = features(frames())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((frames() + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    h = features.network.embeddings(pixels)
    assert features.names == ("block0", "block1", "block2", "block3")
    for block, seen in zip(features.network.encoder.layer, found, strict=True):
        h = block(h)
        torch.testing.assert_close(seen, h[:, 1:])
    assert found[0].shape == (3, 16, 16)
    assert features.dims == dict.fromkeys(features.names, 16)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (2, 5, 8, 11)), (6, (0, 2, 3, 5)), (2, (0, 1)), (1, (0,)), (24, (5, 11, 17, 23))],
)
def test_blocks_are_the_ends_of_the_quarters(depth: int, blocks: tuple[int, ...]) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        image_size=8, patch_size=4, hidden_size=4, num_attention_heads=1, num_hidden_layers=depth
    )
    assert FrozenFeatures(Dinov2Model(config)).blocks == blocks


def test_any_size_is_resized_and_gradients_reach_the_frames(features: FrozenFeatures) -> None:
    x = frames(2, 40).requires_grad_(True)
    found = features(x)
    assert [f.shape for f in found] == [(2, 16, 16)] * 4
    (gradient,) = torch.autograd.grad(found[-1].square().sum(), x)
    assert (gradient != 0).float().mean() > 0.9
    features.train()
    assert not features.network.training
    assert not any(p.requires_grad for p in features.parameters())


def test_the_folder_states_pixels_and_size(folder: Path, tmp_path: Path) -> None:
    import shutil

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": 10, "width": 10}}
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    found = FrozenFeatures.load(other, blocks=[1, 3])
    assert (found.side, found.names) == (8, ("block1", "block3"))
    x = frames(2, 8)
    expected = found.network(x, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found(x)[1], expected[4][:, 1:])
    (other / "preprocessor_config.json").write_text('{"image_std": [0, 1, 1]}')
    with pytest.raises(UserError, match="image_std"):
        FrozenFeatures.load(other)
    with pytest.raises(UserError, match="from 0 to 3"):
        FrozenFeatures.load(folder, blocks=[3, 4])
    (other / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="'vit'"):
        FrozenFeatures.load(other)


def test_a_frame_is_judged_by_itself(features: FrozenFeatures) -> None:
    d = judge(features, augment=0).eval()
    whole = d(frames(5), texts(5))
    assert [head.shape for head in whole] == [(5, 16)] * 4
    for i in range(5):
        alone = d(frames(5)[i : i + 1], texts(5)[i : i + 1])
        for head, one in zip(whole, alone, strict=True):
            torch.testing.assert_close(one[0], head[i], rtol=1e-4, atol=1e-5)


def test_the_text_is_heard_only_where_conditioned(features: FrozenFeatures) -> None:
    heard, deaf = (
        judge(features, augment=0).eval(),
        judge(features, conditioning=False, augment=0).eval(),
    )
    other = texts().flip(0)
    assert not torch.allclose(heard(frames(), texts())[0], heard(frames(), other)[0], atol=1e-4)
    assert torch.equal(deaf(frames(), texts())[0], deaf(frames())[0])
    # conditioned logits are affine in the embedded text: the projection discriminator
    head = heard.heads["block2"]
    seen = heard.see(frames())[2]
    a, b = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))

    def logits(embedded: torch.Tensor) -> torch.Tensor:
        handle = head.embed.register_forward_hook(lambda *_: embedded)
        try:
            return head(seen, texts())
        finally:
            handle.remove()

    torch.testing.assert_close(logits(a) + logits(b), logits(a + b) + logits(0 * a), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="conditioned on text"):
        heard(frames())


def test_augmentation_comes_from_the_generator(features: FrozenFeatures) -> None:
    d = judge(features).eval()
    one, two, three = (d(frames(), texts(), torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.allclose(one, three, atol=1e-4)
    with pytest.raises(ValueError, match="rng"):
        d(frames(), texts())


def test_in_the_students_turn_only_the_frames_get_gradients(features: FrozenFeatures) -> None:
    d = judge(features)
    before = {name: value.clone() for name, value in d.state_dict().items()}
    x = frames().requires_grad_(True)
    with d.frozen():
        logits = d(x, texts(), torch.Generator().manual_seed(0))
    AdversarialLoss("hinge").generator(logits).backward()  # outside, as a trainer does
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in d.parameters())
    assert all(torch.equal(value, before[name]) for name, value in d.state_dict().items())
    assert d.heads.training
    assert all(p.requires_grad for p in d.trainable().values())
    rng = torch.Generator()
    real, fake = d(x.detach(), texts(), rng), d(-x.detach(), texts(), rng)
    AdversarialLoss("bce").discriminator(real, fake).backward()
    assert all(p.grad is not None for p in d.trainable().values())


def test_the_gradient_penalty_reaches_the_heads(features: FrozenFeatures) -> None:
    d = judge(features)
    seen = [f.detach().requires_grad_(True) for f in d.see(frames(), torch.Generator())]
    gradient_penalty(d.from_features(seen, texts()), seen).backward()
    assert d.heads["block0"].get_parameter("enter.parametrizations.weight.original").grad.abs().sum() > 0
    with pytest.raises(ValueError, match="shorter"):
        d.from_features(seen[:2], texts())


def test_heads_are_spectrally_normalised(features: FrozenFeatures) -> None:
    d = judge(features).eval()
    for layer in ("enter", "mix", "score", "project", "embed"):
        weight = getattr(d.heads["block1"], layer).weight.detach()
        assert float(torch.linalg.matrix_norm(weight.flatten(1), 2)) < 1.2


def test_few_tokens_go_too(features: FrozenFeatures) -> None:
    head = judge(features).heads["block0"].eval()
    for tokens in (1, 2, 3, 4, 5):
        assert head(torch.ones(2, tokens, 16), texts(2)).shape == (2, tokens)


def test_the_state_is_the_heads_alone_by_name(features: FrozenFeatures, folder: Path) -> None:
    d = judge(features)
    state = d.state_dict()
    assert state
    assert all(name.startswith("heads.block") for name in state)
    assert set(d.trainable()) <= set(state)
    other = FrameDiscriminator(features, 8, head_width=16, rng=torch.Generator().manual_seed(7))
    other.load_state_dict(state)
    for net in (d, other):
        net.eval()
    x, rng = frames(), torch.Generator()
    assert torch.equal(d(x, texts(), rng.manual_seed(0))[0], other(x, texts(), rng.manual_seed(0))[0])
    elsewhere = FrameDiscriminator(FrozenFeatures.load(folder, blocks=[0, 2]), 8, head_width=16)
    with pytest.raises(RuntimeError, match=r"heads\.block1"):
        elsewhere.load_state_dict(state)


def test_the_initial_weights_come_from_the_generator_alone(features: FrozenFeatures) -> None:
    before = torch.get_rng_state()
    one, two = judge(features).state_dict(), judge(features).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns_to_tell_pictures_apart(features: FrozenFeatures) -> None:
    """Smooth pictures against noise: a few steps must separate held-out ones."""
    d = judge(features)
    optimizer = torch.optim.Adam(d.trainable().values(), lr=3e-3)
    loss, rng = AdversarialLoss("hinge"), torch.Generator().manual_seed(0)

    def pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = frames(8, 16, seed)
        return F.interpolate(noise[..., :4, :4], size=16, mode="bilinear"), noise

    for seed in range(25):
        smooth, noise = pair(seed)
        value = loss.discriminator(d(smooth, texts(8), rng), d(noise, texts(8), rng))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    d.eval()
    smooth, noise = pair(1000)
    real, fake = (torch.cat(d(x, texts(8), rng), 1).mean(1) for x in (smooth, noise))
    assert float((real > fake).float().mean()) == 1.0
