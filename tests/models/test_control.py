"""ControlNets: the same word as diffusers' networks and pipeline, clip by clip, for teachers and students alike."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_animatediff, tiny_controlnet, tiny_modelscope
from torch import Tensor

from mcm.errors import UserError
from mcm.generate import Maker
from mcm.models.control import FrameControl, load_controlnet
from mcm.models.guidance import guided
from mcm.models.student import Student
from mcm.models.video import TextEmbedding, VideoModel, load_video_model

B, T = 2, 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("control")
    tiny_animatediff(root / "animatediff")
    tiny_controlnet(root / "controlnet", seed=3)
    return root


@pytest.fixture(scope="module")
def model(place: Path) -> VideoModel:
    return load_video_model(place / "animatediff")


@pytest.fixture(scope="module")
def network(place: Path, model: VideoModel) -> Any:
    return load_controlnet(place / "controlnet", model)


def drawn(count: int = B, seed: int = 5) -> Tensor:
    """Conditioning pictures (B, 3, T, 16, 16) that all differ, in whole 255ths."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, T, 16, 16), generator=rng).float() / 255


def given(count: int = B) -> tuple[Tensor, Tensor, TextEmbedding]:
    rng = torch.Generator().manual_seed(0)
    text = TextEmbedding(torch.randn(count, 8, 16, generator=rng), torch.randn(count, 16, generator=rng))
    return torch.randn(count, 4, T, 8, 8, generator=rng), torch.tensor([999, 300, 20][:count]), text


def row(text: TextEmbedding, i: int) -> TextEmbedding:
    return TextEmbedding(text.hidden[i : i + 1], text.pooled[i : i + 1])


@torch.no_grad()
def test_the_word_is_that_of_diffusers_networks(place: Path, model: VideoModel, network: Any) -> None:
    """Frame by frame and clip by clip by hand, with plain numbers for times."""
    from diffusers import ControlNetModel, UNetMotionModel

    theirs: Any = ControlNetModel.from_pretrained(place / "controlnet")
    unet: Any = UNetMotionModel.from_pretrained(place / "animatediff" / "unet")
    (z, t, text), pictures = given(), drawn()
    found = FrameControl(network, pictures, 0.7).steer(model.denoiser)(z, t, text)
    for i in range(B):
        one = (int(t[i]), text.hidden[i : i + 1])
        said = [
            theirs(z[i : i + 1, :, f], *one, pictures[i : i + 1, :, f], 0.7, return_dict=False) for f in range(T)
        ]
        down = [torch.cat(parts) for parts in zip(*(residuals for residuals, _ in said), strict=True)]
        prediction = unet(
            z[i : i + 1], int(t[i]), text.hidden[i : i + 1].repeat(T, 1, 1), down_block_additional_residuals=down,
            mid_block_additional_residual=torch.cat([middle for _, middle in said]),
        ).sample  # fmt: skip
        torch.testing.assert_close(found.eps[i : i + 1], prediction, atol=1e-4, rtol=1e-4)
    assert float((found.eps - model.denoiser(z, t, text).eps).abs().max()) > 0.05


@torch.no_grad()
def test_a_run_is_that_of_diffusers_pipeline(place: Path, model: VideoModel, network: Any) -> None:
    from diffusers import AnimateDiffControlNetPipeline, AutoencoderKL, ControlNetModel, DDIMScheduler, UNetMotionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder, pictures = place / "animatediff", drawn(1)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "unet": UNetMotionModel.from_pretrained(folder / "unet"),
        "controlnet": ControlNetModel.from_pretrained(place / "controlnet"),
        "scheduler": DDIMScheduler.from_config(config, set_alpha_to_one=False),
    }
    pipeline: Any = AnimateDiffControlNetPipeline(motion_adapter=None, **parts)  # pyright: ignore[reportArgumentType]
    pipeline.set_progress_bar_config(disable=True)
    films = [Image.fromarray(p) for p in pictures[0].permute(1, 2, 3, 0).mul(255).round().byte().numpy()]
    noise = torch.randn(1, 4, T, 8, 8, generator=torch.Generator().manual_seed(4))
    theirs = pipeline(
        "a red puppet", num_frames=T, height=16, width=16, num_inference_steps=3, guidance_scale=3.0, latents=noise,
        conditioning_frames=films, controlnet_conditioning_scale=0.8, output_type="latent",
    ).frames  # fmt: skip
    maker, control = Maker(model, "tiny"), FrameControl(network, pictures, 0.8)
    ours = maker.latents(["a red puppet"], [4], 3, "ddim", 3.0, frames=T, control=control)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    free = maker.latents(["a red puppet"], [4], 3, "ddim", 3.0, frames=T)
    assert float((ours - free).abs().max()) > 0.1


@torch.no_grad()
def test_scale_zero_is_no_control_to_the_bit(model: VideoModel, network: Any) -> None:
    z, t, text = given()
    bare = model.denoiser(z, t, text)
    assert torch.equal(FrameControl(network, drawn(), 0.0).steer(model.denoiser)(z, t, text).eps, bare.eps)
    whole, half = (FrameControl(network, drawn(), scale)(z, t, text) for scale in (1.0, 0.5))
    for a, b in zip((*whole.down, whole.mid), (*half.down, half.mid), strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(b, a / 2)


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(model: VideoModel, network: Any) -> None:
    (z, t, text), pictures = given(), drawn()
    together = FrameControl(network, pictures).steer(model.denoiser)(z, t, text).eps
    for i in range(B):
        alone = FrameControl(network, pictures[i : i + 1]).steer(model.denoiser)
        found = alone(z[i : i + 1], t[i : i + 1], row(text, i)).eps
        torch.testing.assert_close(found, together[i : i + 1], atol=1e-4, rtol=1e-4)
    shared = FrameControl(network, pictures[:1]).steer(model.denoiser)(z, t, text).eps
    torch.testing.assert_close(shared[0], together[0], atol=1e-4, rtol=1e-4)
    assert float((shared[1] - together[1]).abs().max()) > 1e-3  # each clip follows its own pictures


@torch.no_grad()
def test_both_halves_of_guidance_follow_the_pictures(model: VideoModel, network: Any) -> None:
    (z, t, text), empty = given(), model.text([""])
    steered = FrameControl(network, drawn()).steer(model.denoiser)
    found = guided(steered, z, t, text, empty, 3.0)
    cond, uncond = steered(z, t, text), steered(z, t, empty)  # one empty prompt for all clips
    torch.testing.assert_close(found.eps, uncond.eps + 3 * (cond.eps - uncond.eps), atol=1e-4, rtol=1e-4)
    assert float((uncond.eps - model.denoiser(z, t, empty).eps).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["lora", "full"])
@torch.no_grad()
def test_students_follow_the_pictures_with_their_own_weights(kind: str, model: VideoModel, network: Any) -> None:
    denoiser = copy.deepcopy(model.denoiser)
    student = Student.lora(denoiser, rank=2, alpha=2, targets="attention") if kind == "lora" else Student.full(denoiser)
    rng = torch.Generator().manual_seed(1)
    for weight in student.trainable().values():
        weight += 0.1 * torch.randn(weight.shape, generator=rng)
    (z, t, text), control = given(), FrameControl(network, drawn())
    found = control.steer(student)(z, t, text).eps
    assert torch.equal(found, student.student(z, t, text, control(z, t, text)).eps)
    assert float((found - student(z, t, text).eps).abs().max()) > 1e-3
    taught = control.steer(student.teacher)(z, t, text).eps
    assert torch.equal(taught, control.steer(model.denoiser)(z, t, text).eps)
    assert float((found - taught).abs().max()) > 1e-3
    assert torch.equal(FrameControl(network, drawn(), 0.0).steer(student)(z, t, text).eps, student(z, t, text).eps)


def test_it_comes_frozen_and_in_the_teachers_precision(place: Path) -> None:
    teacher = load_video_model(place / "animatediff", dtype=torch.bfloat16)
    network = load_controlnet(place / "controlnet", teacher)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    z, t, text = given()
    said = FrameControl(network, drawn()).steer(teacher.denoiser)(z, t, text)
    assert said.eps.dtype == torch.float32
    assert bool(said.eps.isfinite().all())


@pytest.mark.parametrize("shape", [(3, 3, T, 16, 16), (2, 3, T + 1, 16, 16)], ids=["clips", "frames"])
def test_pictures_for_other_clips(shape: tuple[int, ...], network: Any) -> None:
    with pytest.raises(ValueError, match=r"conditioning pictures .* for latents"):
        FrameControl(network, torch.zeros(shape))(*given())


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"in_channels": 8}, r"latent channels \(in_channels\) 8 .*which has 4"),
        ({"cross_attention_dim": 32}, r"width of text \(cross_attention_dim\) 32 .*which has 16"),
        ({"block_out_channels": (16, 48)}, r"\(block_out_channels\) \[16, 48\] .*which has \[16, 32\]"),
        ({"layers_per_block": 2}, r"\(layers_per_block\) \[2, 2\] .*which has \[1, 1\]"),
        ({"conditioning_embedding_out_channels": (4, 4, 8)}, r"reduction of pictures .* 4 .*which has 2"),
        ({"conditioning_channels": 1}, r"picture channels .* 1 .*which has 3"),
        ({"global_pool_conditions": True}, r"global_pool_conditions\) True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_controlnet_for_another_model(
    changed: dict[str, Any], words: str, model: VideoModel, tmp_path: Path
) -> None:
    tiny_controlnet(tmp_path / "other", **changed)
    with pytest.raises(UserError, match=words) as error:
        load_controlnet(tmp_path / "other", model)
    assert "\n" not in str(error.value)


def test_what_is_no_controlnet(place: Path, model: VideoModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a UNetMotionModel; expected a diffusers ControlNetModel"):
        load_controlnet(place / "animatediff" / "unet", model)
    with pytest.raises(UserError, match=r"controlnet .*animatediff: .*config.json is missing"):
        load_controlnet(place / "animatediff", model)
    with pytest.raises(UserError, match=r"controlnet .*nowhere: no such folder"):
        load_controlnet(tmp_path / "no" / "such" / "nowhere", model)
    with pytest.raises(UserError, match=r"no ControlNet is known for it; name one \(--controlnet\)"):
        load_controlnet(None, model)
    shutil.copytree(place / "controlnet", tmp_path / "pickled")
    weights = tmp_path / "pickled" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        load_controlnet(tmp_path / "pickled", model)


@pytest.mark.parametrize("named", [True, False])
def test_a_family_that_no_picture_controlnet_fits(named: bool, place: Path, tmp_path: Path) -> None:
    teacher = load_video_model(tiny_modelscope(tmp_path / "modelscope"))
    with pytest.raises(UserError, match=r"UNet3DConditionModel cannot be steered .* family animatediff$"):
        load_controlnet(place / "controlnet" if named else None, teacher)
