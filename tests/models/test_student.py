"""The student: whose weights speak, whose learn, and that they come back from files to the bit."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_animatediff, tiny_modelscope
from torch import Tensor

from mcm.errors import UserError
from mcm.models.student import Student
from mcm.models.video import TextEmbedding, VideoDenoiser, load_video_model

FAMILIES = ["animatediff", "modelscope"]
Inputs = tuple[Tensor, Tensor, TextEmbedding]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoDenoiser]:
    root = tmp_path_factory.mktemp("teachers")
    return {
        "animatediff": load_video_model(tiny_animatediff(root / "a")).denoiser,
        "modelscope": load_video_model(tiny_modelscope(root / "m")).denoiser,
    }


@pytest.fixture
def inputs() -> Inputs:
    rng = torch.Generator().manual_seed(0)
    text = TextEmbedding(torch.randn(2, 8, 16, generator=rng), torch.randn(2, 16, generator=rng))
    return torch.randn(2, 4, 3, 8, 8, generator=rng), torch.tensor([999, 300]), text


def lora(teacher: VideoDenoiser, averaged: bool = False, seed: int = 1, **settings: Any) -> Student:
    """A student as it is when new. Asked for the same again, it is the same object, made new."""
    student, initial = injected(teacher, averaged, seed, **settings)
    student.load_state_dict(initial)
    for weight in student.trainable().values():
        weight.requires_grad_(True).grad = None
    return student


@functools.cache  # injecting takes peft long; few layers, for the same reason
def injected(
    teacher: VideoDenoiser, averaged: bool, seed: int, **settings: Any
) -> tuple[Student, dict[str, Tensor]]:
    settings = {"targets": "attention", "rng": torch.Generator().manual_seed(seed), **settings}
    student = Student.lora(copy.deepcopy(teacher), rank=4, alpha=4, averaged=averaged, **settings)
    return student, {name: weight.clone() for name, weight in student.state_dict().items()}


def shake(student: Student, seed: int = 2) -> None:
    """A pretended training step."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in student.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=rng)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_off_is_the_untouched_teacher_to_the_bit(
    name: str, teachers: dict[str, VideoDenoiser], inputs: Inputs
) -> None:
    student = lora(teachers[name], averaged=True, targets="all")
    truth = teachers[name](*inputs)
    new = student(*inputs)
    torch.testing.assert_close(new, truth)  # a new student is the teacher
    shake(student)
    for _ in range(2):
        assert torch.equal(student.teacher(*inputs).x0, truth.x0)
        assert not torch.allclose(student.student(*inputs).x0, truth.x0, atol=1e-3)
        assert torch.equal(student.target(*inputs).eps, new.eps)  # not averaged yet


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_only_the_student_learns_whoever_spoke_last(
    kind: str, teachers: dict[str, VideoDenoiser], inputs: Inputs
) -> None:
    teacher = teachers["modelscope"]
    student = lora(teacher, True) if kind == "lora" else Student.full(copy.deepcopy(teacher), averaged=True)
    names = set(student.trainable())
    loss = student.student(*inputs).x0.square().mean()
    taught, aimed = student.teacher(*inputs).x0, student.target(*inputs).x0
    assert not taught.requires_grad
    assert not aimed.requires_grad
    (loss + (taught - aimed).square().mean()).backward()
    assert student.student(*inputs).x0.requires_grad
    assert all(p.requires_grad for p in student.trainable().values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.trainable().values())
    own = {id(p) for p in student.trainable().values()}
    others = [p for p in everything(student) if id(p) not in own]
    assert others
    assert not any(p.requires_grad or p.grad is not None for p in others)
    assert set(student.trainable()) == names == set(student.averages())


def everything(student: Student) -> list[Tensor]:
    parts = [getattr(student, part, None) for part in ("denoiser", "copy", "trailing")]
    return [p for part in parts if part is not None for p in part.parameters()]


def test_flags_set_by_a_trainer_survive_the_other_voices(
    teachers: dict[str, VideoDenoiser], inputs: Inputs
) -> None:
    student = lora(teachers["modelscope"], averaged=True)
    for weight in student.trainable().values():
        weight.requires_grad_(False)
    student.teacher(*inputs)
    student.target(*inputs)
    assert not any(p.requires_grad for p in everything(student))


def test_the_student_speaks_again_after_an_error(teachers: dict[str, VideoDenoiser], inputs: Inputs) -> None:
    student = lora(teachers["modelscope"])
    shake(student)
    z, t, text = inputs
    truth = student.student(*inputs).x0
    with pytest.raises(ValueError, match="prompts"):
        student.teacher(z, t, TextEmbedding(torch.cat([text.hidden, text.hidden]), text.pooled))
    assert torch.equal(student.student(*inputs).x0, truth)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_target_trails_the_student(kind: str, teachers: dict[str, VideoDenoiser], inputs: Inputs) -> None:
    teacher = teachers["animatediff"]
    student = lora(teacher, True) if kind == "lora" else Student.full(copy.deepcopy(teacher), averaged=True)
    before = {name: weight.clone() for name, weight in student.averages().items()}
    shake(student)
    student.average(0.75)
    for name, weight in student.averages().items():
        expected = 0.75 * before[name] + 0.25 * student.trainable()[name]
        torch.testing.assert_close(weight, expected)
    student.average(0.0)
    assert torch.equal(student.target(*inputs).x0, student.student(*inputs).x0)
    alone = lora(teacher) if kind == "lora" else Student.full(copy.deepcopy(teacher))
    shake(alone)
    assert torch.equal(alone.target(*inputs).x0, alone.student(*inputs).x0)
    assert not alone.averages()
    with pytest.raises(ValueError, match="target"):
        alone.average(0.9)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_gradients_are_the_students_own(
    family: str, teachers: dict[str, VideoDenoiser], inputs: Inputs
) -> None:
    """Checkpointed layers run again in the backward pass, after teacher and target have spoken."""
    teacher = teachers[family]
    plain, tested = lora(teacher, True), lora(teacher, True, checkpointing=True)
    for student in (plain, tested):
        shake(student)
        shown = student.student(*inputs).x0
        aim = student.target(*inputs).x0 + student.teacher(*inputs).x0
        (shown - aim).square().mean().backward()
    for name, weight in plain.trainable().items():
        other = tested.trainable()[name].grad
        assert weight.grad is not None
        assert other is not None
        torch.testing.assert_close(other, weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_checkpoint_restores_student_and_target_to_the_bit(
    kind: str, teachers: dict[str, VideoDenoiser], inputs: Inputs, tmp_path: Path
) -> None:
    def new(seed: int) -> Student:
        teacher = teachers["animatediff"]
        return (
            lora(teacher, True, seed)
            if kind == "lora"
            else Student.full(copy.deepcopy(teacher), averaged=True)
        )

    student, other = new(1), new(9)
    shake(student)
    student.average(0.5)
    shake(student, 3)
    save_file({k: v.contiguous() for k, v in student.state_dict().items()}, tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(other.student(*inputs).x0, student.student(*inputs).x0)
    assert torch.equal(other.target(*inputs).x0, student.target(*inputs).x0)
    assert torch.equal(other.teacher(*inputs).x0, student.teacher(*inputs).x0)
    if kind == "lora":
        assert all("lora_" in name for name in student.state_dict())
    state = student.state_dict()
    state.pop(next(iter(state)))
    with pytest.raises(UserError, match="lacks the weight"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "kind"), [("animatediff", "lora"), ("modelscope", "lora"), ("modelscope", "full")]
)
def test_saved_students_come_back(
    name: str, kind: str, teachers: dict[str, VideoDenoiser], inputs: Inputs, tmp_path: Path
) -> None:
    teacher = teachers[name]
    student = lora(teacher, True) if kind == "lora" else Student.full(copy.deepcopy(teacher), averaged=True)
    (tmp_path / "card.json").write_text("{}")
    shake(student)
    student.save(tmp_path)
    student.save(tmp_path)  # again, over itself
    student.save(tmp_path / "half", half=True, which="target")
    back = Student.load(copy.deepcopy(teacher), tmp_path)
    assert type(back) is type(student)
    assert torch.equal(back.student(*inputs).x0, student.student(*inputs).x0)
    assert torch.equal(back.teacher(*inputs).x0, teacher(*inputs).x0)
    half = Student.load(copy.deepcopy(teacher), tmp_path / "half")
    torch.testing.assert_close(half.student(*inputs).x0, student.target(*inputs).x0, rtol=0.05, atol=0.05)
    sizes = [next(f.glob("*.safetensors")).stat().st_size for f in (tmp_path, tmp_path / "half")]
    assert sizes[1] < 0.7 * sizes[0]
    weights = "adapter_model" if kind == "lora" else "diffusion_pytorch_model"
    config = "adapter_config.json" if kind == "lora" else "config.json"
    assert {p.name for p in tmp_path.iterdir()} == {f"{weights}.safetensors", config, "card.json", "half"}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_student_begins_where_another_ended(
    kind: str, teachers: dict[str, VideoDenoiser], inputs: Inputs, tmp_path: Path
) -> None:
    def new(averaged: bool, seed: int) -> Student:
        if kind == "lora":
            return Student.lora(copy.deepcopy(teachers["modelscope"]), 4, 4, "attention", averaged, rng=_rng(seed))
        return Student.full(copy.deepcopy(teachers["modelscope"]), averaged)

    ended = new(False, 1)
    shake(ended)
    ended.save(tmp_path)
    begun = new(True, 2)
    assert not torch.equal(begun(*inputs).x0, ended(*inputs).x0)
    begun.begin(tmp_path)
    for voice in (begun.student, begun.target):
        torch.testing.assert_close(voice(*inputs).x0, ended(*inputs).x0, rtol=0, atol=0)
    assert all(weight.requires_grad for weight in begun.trainable().values())
    assert not any(weight.requires_grad for weight in begun.averages().values())


def test_a_student_cannot_begin_as_one_of_another_rank(teachers: dict[str, VideoDenoiser], tmp_path: Path) -> None:
    lora(teachers["modelscope"]).save(tmp_path)
    other = Student.lora(copy.deepcopy(teachers["modelscope"]), 2, 4, "attention")
    with pytest.raises(UserError, match=r"shape .*expected .*same teacher and rank"):
        other.begin(tmp_path)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_reads_the_folder(
    name: str, teachers: dict[str, VideoDenoiser], inputs: Inputs, tmp_path: Path
) -> None:
    from peft import PeftModel

    student = lora(teachers[name], targets="all")
    shake(student)
    student.save(tmp_path)
    bare = copy.deepcopy(teachers[name])
    adapted = PeftModel.from_pretrained(bare.network, str(tmp_path))  # type: ignore[arg-type]
    bare.network = adapted.merge_and_unload()  # unmerged, peft cannot run diffusers' motion modules
    torch.testing.assert_close(bare(*inputs).x0, student.student(*inputs).x0, rtol=1e-3, atol=1e-3)


def test_diffusers_reads_a_full_student(
    teachers: dict[str, VideoDenoiser], inputs: Inputs, tmp_path: Path
) -> None:
    from diffusers import UNetMotionModel

    student = Student.full(copy.deepcopy(teachers["animatediff"]))
    shake(student)
    student.save(tmp_path)
    bare = copy.deepcopy(teachers["animatediff"])
    bare.network = UNetMotionModel.from_pretrained(tmp_path)
    torch.testing.assert_close(bare(*inputs).x0, student.student(*inputs).x0)


def test_which_layers_get_adapters(teachers: dict[str, VideoDenoiser]) -> None:
    from torch import nn

    teacher = teachers["modelscope"]
    layers = {n for n, m in teacher.network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    student = lora(teacher, targets="all")
    assert {name.rsplit(".lora_", 1)[0] for name in student.trainable()} == layers
    attention = {name.rsplit(".lora_", 1)[0] for name in lora(teacher, targets="attention").trainable()}
    assert any("temp_attentions" in name for name in attention)
    assert attention < layers
    assert all(".attn" in name for name in attention)
    with pytest.raises(UserError, match="did you mean 'attention'"):
        lora(teacher, targets="atention")
    with pytest.raises(UserError, match="rank 0"):
        Student.lora(copy.deepcopy(teacher), rank=0)


def test_the_initial_weights_come_from_the_generator_alone(teachers: dict[str, VideoDenoiser]) -> None:
    teacher = teachers["modelscope"]
    before = torch.get_rng_state()
    one, two, three = (
        Student.lora(
            copy.deepcopy(teacher), rank=4, targets="attention", rng=torch.Generator().manual_seed(seed)
        ).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)  # torch's global generator was not used up
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)
    assert all(not weight.any() for name, weight in one.items() if "lora_B" in name)


def test_half_precision_teachers_train_adapters_in_float32(
    teachers: dict[str, VideoDenoiser], inputs: Inputs
) -> None:
    teacher = copy.deepcopy(teachers["animatediff"])
    teacher.network.to(torch.bfloat16)
    student = lora(teacher)
    student.student(*inputs).x0.square().mean().backward()
    assert {p.dtype for p in student.trainable().values()} == {torch.float32}
    assert student.teacher(*inputs).x0.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_it_says_the_same_with_no_adapter_in_the_way(
    family: str, teachers: dict[str, VideoDenoiser], inputs: Inputs
) -> None:
    student = lora(copy.deepcopy(teachers[family]))  # its own: merged it stays
    shake(student)
    with torch.no_grad():
        apart = student(*inputs)
        student.merge()
        asked = []
        for name, module in student.denoisers()[0].network.named_modules():
            if "lora_" in name:
                module.register_forward_hook(lambda *given: asked.append(given))
        together = student(*inputs)
    assert not asked
    torch.testing.assert_close(together.eps, apart.eps, atol=1e-5, rtol=1e-5)
    student.merge()  # a second time changes nothing
    assert torch.equal(student(*inputs).eps, together.eps)


def test_weights_of_less_than_float32_keep_their_adapters_beside_them(teachers: dict[str, VideoDenoiser]) -> None:
    student = lora(copy.deepcopy(teachers["modelscope"]).to(torch.bfloat16))
    before = [w.clone() for n, w in student.denoisers()[0].network.named_parameters() if "base_layer" in n]
    shake(student)
    student.merge()
    after = [w for n, w in student.denoisers()[0].network.named_parameters() if "base_layer" in n]
    assert all(map(torch.equal, before, after))


def test_wrong_folders_are_named(teachers: dict[str, VideoDenoiser], tmp_path: Path) -> None:
    motion, space = teachers["animatediff"], teachers["modelscope"]
    with pytest.raises(UserError, match="found neither"):
        Student.load(copy.deepcopy(motion), tmp_path)
    lora(motion).save(tmp_path / "motion")
    with pytest.raises(UserError, match=r"student .*motion: has adapters for .* UNet3DConditionModel lacks"):
        Student.load(copy.deepcopy(space), tmp_path / "motion")
    Student.full(copy.deepcopy(space)).save(tmp_path / "space")
    with pytest.raises(UserError, match="UNet3DConditionModel; its teacher's network is a UNetMotionModel"):
        Student.load(copy.deepcopy(motion), tmp_path / "space")
    config = tmp_path / "motion" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 8}))
    with pytest.raises(UserError, match="shape"):
        Student.load(copy.deepcopy(motion), tmp_path / "motion")
    config.write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match="IA3"):
        Student.load(copy.deepcopy(motion), tmp_path / "motion")


def test_an_unwritable_folder_leaves_nothing_half_written(
    teachers: dict[str, VideoDenoiser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = lora(teachers["modelscope"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        student.save(tmp_path / "file")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mcm.models.adapters.save_file", full_disk)
    with pytest.raises(UserError, match="No space left"):
        student.save(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
