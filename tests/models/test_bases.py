"""Base image models inside a teacher: equal to a pipeline built with that base, and gone without a trace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny import PICTURES, tiny_animatediff, tiny_look, tiny_modelscope
from tiny_students import stirred

from mcm.errors import UserError
from mcm.models.bases import Bases, spatial
from mcm.models.fingerprint import fingerprint
from mcm.models.student import Student
from mcm.models.video import VideoDenoiser, VideoModel, load_video_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher/ and other/, Stable Diffusion UNets beside motion adapters; LoRAs in look/ and told/, with alpha 5."""
    place = tmp_path_factory.mktemp("bases")
    tiny_animatediff(place / "teacher", "adapter")
    tiny_animatediff(place / "other", "adapter", seed=7)
    tiny_look(place / "look", seed=1)
    tiny_look(place / "told", seed=2, alpha=5.0)
    return place


def built(place: Path, out: Path, name: str) -> VideoModel:
    """The teacher's pipeline with this base's image UNet, put together by diffusers alone."""
    shutil.copytree(place / "teacher", out)
    shutil.rmtree(out / "unet")
    if name == "other":
        shutil.copytree(place / "other" / "unet", out / "unet")
    else:
        unet: Any = UNet2DConditionModel.from_pretrained(place / "teacher" / "unet")
        unet.load_lora_adapter(place / name, prefix="unet", weight_name="pytorch_lora_weights.safetensors")
        unet.fuse_lora()
        unet.unload_lora()
        unet.save_pretrained(out / "unet")
    return load_video_model(out)


def named(place: Path, name: str) -> str:
    return str(place / name / "pytorch_lora_weights.safetensors") if name == "told" else str(place / name)


def asked(model: VideoModel, denoise: Any) -> torch.Tensor:
    z = torch.randn(2, *model.latent_shape(4), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return denoise(z, torch.tensor([30, 700]), model.text(["a red puppet walks", "a blue puppet jumps"])).x0


def weights(denoiser: VideoDenoiser) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in denoiser.network.named_parameters()}


@pytest.mark.parametrize(("name", "kind"), [("other", "full"), ("told", "lora")])
def test_inside_all_are_as_in_a_pipeline_built_with_the_base(place: Path, tmp_path: Path, name: str, kind: str) -> None:
    model, wanted = load_video_model(place / "teacher"), built(place, tmp_path / "built", name)
    bases = Bases.load(["teacher", named(place, name)], model.denoiser)

    def student(of: VideoModel) -> Student:
        if kind == "lora":
            return stirred(Student.lora(of.denoiser, 3, 6.0, averaged=True))
        return Student.full(of.denoiser, averaged=True)

    ours, theirs = student(model), student(wanted)
    if kind == "lora":
        with torch.no_grad():  # a target that differs from the student
            for one in (ours, theirs):
                for weight in one.averages().values():
                    weight.fill_(0.02)
    before = [weights(denoiser) for denoiser in ours.denoisers()]
    own = asked(model, ours.student)
    for part in ("student", "teacher", "target"):
        with bases.beneath(ours.denoisers(), 1):
            found = asked(model, getattr(ours, part))
        torch.testing.assert_close(found, asked(wanted, getattr(theirs, part)), atol=1e-5, rtol=1e-5)
    assert (asked(model, ours.teacher) - asked(wanted, theirs.teacher)).abs().max() > 0.05  # it is another model
    with bases.beneath(ours.denoisers(), 0):
        assert torch.equal(asked(model, ours.student), own)
    for denoiser, kept in zip(ours.denoisers(), before, strict=True):
        assert all(torch.equal(p, kept[n]) for n, p in weights(denoiser).items())


def test_the_teacher_is_back_after_an_error(place: Path) -> None:
    model = load_video_model(place / "teacher")
    bases = Bases.load([str(place / "other")], model.denoiser)
    mark, before = fingerprint(model.denoiser.network), weights(model.denoiser)

    def fail() -> None:
        with bases.beneath([model.denoiser], 0):
            assert fingerprint(model.denoiser.network) != mark
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail()
    assert fingerprint(model.denoiser.network) == mark
    assert all(torch.equal(p, before[n]) for n, p in weights(model.denoiser).items())


def test_layers_over_time_stay_and_a_lora_costs_its_own_layers_alone(place: Path) -> None:
    model = load_video_model(place / "teacher")
    inside = sum(p.numel() for p in spatial(model.denoiser).values())
    whole, lora = (Bases.load(["teacher", str(place / name)], model.denoiser) for name in ("other", "look"))
    assert whole.held() == 2 * 4 * inside  # its own, and the teacher's to come back to
    adapted = {k.removeprefix("unet.").rsplit(".lora_", 1)[0] for k in load_file(tiny_file(place, "look"))}
    assert lora.held() == 2 * 4 * sum(spatial(model.denoiser)[f"{layer}.weight"].numel() for layer in adapted)
    before = weights(model.denoiser)
    with whole.beneath([model.denoiser], 1):
        changed = {n for n, p in weights(model.denoiser).items() if not torch.equal(p, before[n])}
    assert changed
    assert not any(model.denoiser.is_temporal(name) for name in changed)


def tiny_file(place: Path, name: str) -> Path:
    return place / name / "pytorch_lora_weights.safetensors"


def test_on_the_meta_device_shapes_alone_are_read(place: Path) -> None:
    with torch.device("meta"):
        model = load_video_model(place / "teacher", "meta")
        found = Bases.load([str(place / "other"), str(place / "told")], model.denoiser)
    real = load_video_model(place / "teacher")
    assert found.held() == Bases.load([str(place / "other"), str(place / "told")], real.denoiser).held()


def test_half_precision_of_an_old_layout_is_read(place: Path, tmp_path: Path) -> None:
    """lora.down and lora.up with an alpha a layer, as diffusers wrote it before peft."""
    state = {}
    for key, value in load_file(tiny_file(place, "look")).items():
        state[key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")] = value.half()
        state[key.rsplit(".lora_", 1)[0] + ".alpha"] = torch.tensor(6.0)  # twice the rank
    save_file(state, tmp_path / "old.safetensors")
    model = load_video_model(place / "teacher")
    old, new = (Bases.load([name], model.denoiser) for name in (str(tmp_path / "old.safetensors"), str(place / "look")))
    own, layer = weights(model.denoiser), "conv_in.weight"
    with old.beneath([model.denoiser], 0):
        twice = weights(model.denoiser)[layer] - own[layer]
    with new.beneath([model.denoiser], 0):
        once = weights(model.denoiser)[layer] - own[layer]
    assert once.abs().max() > 0.1
    torch.testing.assert_close(twice, 2 * once, atol=2e-3, rtol=2e-3)


# What is refused ----------------------------------------------------------------------------------------------------


def other_unet(folder: Path, **changed: Any) -> str:
    UNet2DConditionModel(**(PICTURES | changed)).save_pretrained(folder / "unet")
    return str(folder)


def changed_lora(folder: Path, place: Path, change: Any) -> str:
    state = load_file(tiny_file(place, "look"))
    change(state)
    save_file(state, folder / "lora.safetensors")
    return str(folder / "lora.safetensors")


def without_half(state: dict[str, torch.Tensor]) -> None:
    del state["unet.conv_in.lora_B.weight"]


def with_text(state: dict[str, torch.Tensor]) -> None:
    state["text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"] = torch.zeros(2, 2)


def of_motion(state: dict[str, torch.Tensor]) -> None:
    for key in list(state):
        state[key.replace("conv_in", "down_blocks.0.motion_modules.0.proj_in")] = state.pop(key)


def kohyas(state: dict[str, torch.Tensor]) -> None:
    state["lora_unet_conv_in.lora_down.weight"] = state.pop("unet.conv_in.lora_A.weight")


def small(state: dict[str, torch.Tensor]) -> None:
    state["unet.conv_in.lora_A.weight"] = state["unet.conv_in.lora_A.weight"][:, :2].contiguous()


def pickled(folder: Path, place: Path) -> str:
    (folder / "model.ckpt").write_bytes(b"\x80\x02")
    return str(folder / "model.ckpt")


def damaged(folder: Path, place: Path) -> str:
    (folder / "lora.safetensors").write_bytes(b"nothing of the kind")
    return str(folder / "lora.safetensors")


def pickled_folder(folder: Path, place: Path) -> str:
    shutil.copytree(place / "other" / "unet", folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    return str(folder)


def incomplete(folder: Path, place: Path) -> str:
    shutil.copytree(place / "other" / "unet", folder / "unet")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_in.weight"]
    save_file(state, file, metadata={"format": "pt"})
    return str(folder)


def damaged_header(folder: Path, place: Path) -> str:
    save_file(load_file(tiny_file(place, "look")), folder / "lora.safetensors", metadata={"lora_adapter_metadata": "{"})
    return str(folder / "lora.safetensors")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder, place: str(place / "no" / "such" / "folder"), "no such folder"),
        (lambda folder, place: str(folder / "no.safetensors"), "no such file"),
        (lambda folder, place: str(folder), "config.json"),
        (pickled, "pickled"),
        (pickled_folder, "pickled"),
        (damaged, "cannot read"),
        (damaged_header, "lora_adapter_metadata"),
        (incomplete, "conv_in.weight"),
        (lambda folder, place: str(tiny_modelscope(folder / "scope")), "UNet3DConditionModel"),
        (lambda folder, place: other_unet(folder, block_out_channels=(16, 64)), "shape"),
        (lambda folder, place: other_unet(folder, attention_head_dim=4), "num_attention_heads is 4, the teacher's 2"),
        (lambda folder, place: other_unet(folder, addition_embed_type="text"), "unlike the teacher's"),
        (lambda folder, place: changed_lora(folder, place, without_half), "half"),
        (lambda folder, place: changed_lora(folder, place, with_text), "text encoder"),
        (lambda folder, place: changed_lora(folder, place, of_motion), "motion_modules.*lacks"),
        (lambda folder, place: changed_lora(folder, place, kohyas), "lora_unet_conv_in.*save_lora_weights"),
        (lambda folder, place: changed_lora(folder, place, small), "do not fit"),
        (lambda folder, place: changed_lora(folder, place, dict.clear), "empty"),
        (lambda folder, place: str(tiny_look(folder / "wide", cross_attention_dim=8, block_out_channels=(16, 64))),
         "same family"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(place: Path, tmp_path: Path, make: Any, said: str) -> None:
    model = load_video_model(place / "teacher")
    with pytest.raises(UserError, match=said) as error:
        Bases.load(["teacher", make(tmp_path, place)], model.denoiser)
    assert "\n" not in str(error.value)


def test_a_name_given_twice_and_a_teacher_without_an_image_model_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="twice"):
        Bases.load(["teacher", "teacher"], load_video_model(place / "teacher").denoiser)
    with pytest.raises(UserError, match="animatediff"):
        Bases.load(["teacher"], load_video_model(tiny_modelscope(tmp_path / "scope")).denoiser)


def test_the_tiny_lora_says_its_alpha_where_it_is_told(place: Path) -> None:
    """Without this the equality with diffusers above would say nothing of alpha."""
    from safetensors import safe_open

    with safe_open(tiny_file(place, "told"), "pt") as opened:
        assert json.loads(opened.metadata()["lora_adapter_metadata"])["unet.lora_alpha"] == 5.0
