"""Gradient checkpointing: the same outputs and gradients, fewer activations kept, nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from stage import make_batch, make_players
from tiny import tiny_animatediff, tiny_modelscope
from tiny_transformers import tiny_wan
from torch import Tensor, nn

from mcm.errors import UserError
from mcm.methods import method
from mcm.models.checkpointing import can_checkpoint, checkpoint, uncheckpoint
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.student import Student
from mcm.models.video import TextEmbedding, VideoModel, load_video_model
from mcm.models.wan import Experts

FAMILIES = ["animatediff", "modelscope"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoModel]:
    root = tmp_path_factory.mktemp("models")
    return {
        "animatediff": load_video_model(tiny_animatediff(root / "a")),
        "modelscope": load_video_model(tiny_modelscope(root / "m")),
    }


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT = TextEmbedding(drawn(2, 8, 16, seed=1), drawn(2, 16, seed=2))
TIMES = torch.tensor([999, 300])


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Bytes that forward passes inside leave for their backward passes, counted once a storage."""
    found: dict[int, Tensor] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = sum(t.untyped_storage().nbytes() for t in found.values())


def gradients(student: Any, half: bool = False) -> tuple[Tensor, list[Tensor]]:
    """What a student says, and the gradients of its input and of its weights."""
    z = drawn(2, 4, 3, 8, 8).requires_grad_()
    weights = [p for p in student.trainable().values() if p.requires_grad]
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        x0 = student(z, TIMES, TEXT).x0
        student.teacher(z, TIMES, TEXT)  # other adapters are on meanwhile
    found = torch.autograd.grad(x0.square().mean(), [z, *weights], allow_unused=True)
    return x0.detach(), [grad for grad in found if grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "full", "lora, bf16"])
def test_outputs_and_gradients_to_the_bit(family: str, kind: str, models: dict[str, VideoModel]) -> None:
    denoiser = copy.deepcopy(models[family].denoiser)
    names = list(denoiser.state_dict())
    student: Student
    if kind == "full":
        student = Student.full(denoiser)
    else:
        student = Student.lora(denoiser, rank=2, alpha=2, rng=torch.Generator().manual_seed(0))
        names = list(denoiser.state_dict())
        for weight in student.trainable().values():
            weight.data += 0.05 * drawn(*weight.shape)
    network = student.denoisers()[0].network
    half = "bf16" in kind
    with kept_bytes() as whole:
        said, wanted = gradients(student, half)
    checkpoint(network)
    with kept_bytes() as fewer:
        again, found = gradients(student, half)
    assert torch.equal(again, said)
    assert len(found) == len(wanted) > 10
    assert all(torch.equal(g, w) for g, w in zip(found, wanted, strict=True))
    assert fewer[0] < 0.5 * whole[0]
    assert list(student.denoisers()[0].state_dict()) == names
    uncheckpoint(network)
    assert not any("forward" in vars(module) for module in network.modules())
    with kept_bytes() as removed:
        gradients(student, half)
    assert removed == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_runs_again_with_gradients_and_once_without(family: str, models: dict[str, VideoModel]) -> None:
    denoiser = copy.deepcopy(models[family].denoiser)
    checkpoint(denoiser.network)
    counts: dict[str, int] = {}

    def counted(name: str) -> Any:
        def hook(*_: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    inner = [(n, m) for n, m in denoiser.network.named_modules() if n.endswith(("conv1", "attn1", "norm1"))]
    for name, module in inner:
        module.register_forward_pre_hook(counted(name))
    assert any("motion_modules" in n or "temp_attentions" in n for n, _ in inner)
    z = drawn(2, 4, 3, 8, 8).requires_grad_()
    with torch.no_grad():
        denoiser(z, TIMES, TEXT)
    assert set(counts.values()) == {1}
    denoiser(z, TIMES, TEXT).x0.sum().backward()
    assert len(counts) == len(inner)
    assert set(counts.values()) == {3}  # one without gradients, one with, one of the backward pass


def test_a_copy_is_checkpointed_and_its_own(models: dict[str, VideoModel]) -> None:
    first = copy.deepcopy(models["modelscope"].denoiser)
    checkpoint(first.network)
    second = copy.deepcopy(first)
    z = drawn(2, 4, 3, 8, 8).requires_grad_()
    said = first(z, TIMES, TEXT).x0
    for weight in second.parameters():
        weight.data.mul_(1.5)
    assert torch.equal(first(z, TIMES, TEXT).x0, said)
    assert not torch.equal(second(z, TIMES, TEXT).x0, said)
    plain = copy.deepcopy(second)
    uncheckpoint(plain.network)
    with kept_bytes() as fewer:
        found = second(z, TIMES, TEXT).x0
    with kept_bytes() as whole:
        wanted = plain(z, TIMES, TEXT).x0
    assert torch.equal(found, wanted)
    assert fewer[0] < 0.5 * whole[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_discriminator_of_a_checkpointed_encoder(family: str, models: dict[str, VideoModel]) -> None:
    found = []
    for on in (False, True):
        denoiser = copy.deepcopy(models[family].denoiser)
        if on:
            checkpoint(denoiser.network)
        judge = EncoderDiscriminator.of(denoiser, torch.Generator().manual_seed(0))
        z = drawn(2, 4, 3, 8, 8).requires_grad_()
        with judge.frozen():
            told = judge(z, TIMES, TEXT)
        judge(z.detach(), TIMES, TEXT).sum().backward()
        weights = [p.grad for p in judge.parameters() if p.grad is not None]
        found.append([told, *torch.autograd.grad(told.sum(), z), *weights])
    assert len(found[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_turns_of_one_part_of_the_student(progress: float, tmp_path: Path) -> None:
    """Weights are frozen, and motion modules step aside, until the end of the turn."""
    chosen = method("animatelcm", generated_probability=0.0)
    players = make_players(tmp_path, chosen)
    batch = make_batch(players, real=False)._replace(progress=progress)
    found = []
    for on in (False, True):
        if on:
            checkpoint(players.student.denoisers()[0].network)
        for weight in players.student.trainable().values():
            weight.grad = None
        for turn in chosen.turns(players, batch, torch.Generator().manual_seed(0)):
            torch.stack(list(turn.losses.values())).sum().backward()
        found.append({n: w.grad for n, w in players.student.trainable().items() if w.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert 0 < len(found[0]) < len(players.student.trainable())
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())


def test_decoded_frames(models: dict[str, VideoModel]) -> None:
    codec = copy.deepcopy(models["modelscope"].codec)
    index = torch.tensor([[0, 2], [1, 2]])
    found = []
    for on in (False, True):
        for network in codec.recomputable() if on else []:
            checkpoint(network)
        z = drawn(2, 4, 3, 8, 8).requires_grad_()
        with kept_bytes() as kept:
            frames = codec.decode_frames(z, index)
        found.append((kept[0], frames, *torch.autograd.grad(frames.square().sum(), z)))
    (whole, *wanted), (fewer, *had) = found
    assert all(torch.equal(a, b) for a, b in zip(wanted, had, strict=True))
    assert fewer < 0.6 * whole


def test_transformers_go_diffusers_own_way(tmp_path: Path) -> None:
    model = load_video_model(tiny_wan(tmp_path / "wan"))
    network: Any = model.denoiser.network
    both = Experts(network, copy.deepcopy(network), 875.0)
    for one in (network, both):
        assert can_checkpoint(one)
        checkpoint(one)
        assert network.is_gradient_checkpointing
        uncheckpoint(one)
        assert not network.is_gradient_checkpointing
    assert not model.codec.recomputable()  # a second run would find another cache


def test_without_blocks_it_is_one_line() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not can_checkpoint(network)
    with pytest.raises(UserError, match="gradient checkpointing: a Sequential has no blocks of layers"):
        checkpoint(network)
