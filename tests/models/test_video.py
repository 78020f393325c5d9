"""Loading teachers: equality with diffusers' own pipelines, any layout and precision, and clear errors."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_animatediff, tiny_modelscope

from mcm.errors import UserError
from mcm.models.guidance import guided
from mcm.models.video import Control, TextEmbedding, VideoModel, families, load_video_model
from mcm.samplers import sample
from mcm.samplers.ddim import DDIM

PROMPTS = ["a red puppet walks", "a blue puppet jumps in the park"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    return {
        "animatediff": tiny_animatediff(root / "animatediff"),
        "adapter": tiny_animatediff(root / "adapter", "adapter"),
        "modelscope": tiny_modelscope(root / "modelscope"),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, VideoModel]:
    return {name: load_video_model(folder) for name, folder in folders.items()}


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the AnimateDiff folder to damage."""
    return Path(shutil.copytree(folders["animatediff"], tmp_path / "broken"))


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An empty zoo of pocket models; what a test puts into it is found by name."""
    known: dict[str, Path] = {}
    module = ModuleType("mcm.pocket.zoo")
    module.find = known.get  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mcm.pocket.zoo", module)
    return known


def inputs(batch: int = 2, frames: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, frames, 8, 8, generator=rng), torch.tensor([999, 420, 3][:batch])


def pipeline(name: str, folder: Path) -> Any:
    """diffusers' own pipeline over the folder."""
    from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet3DConditionModel, UNetMotionModel
    from diffusers.pipelines.animatediff import AnimateDiffPipeline
    from diffusers.pipelines.deprecated.text_to_video_synthesis import TextToVideoSDPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
    }
    if name == "modelscope":
        parts["unet"] = UNet3DConditionModel.from_pretrained(folder / "unet")
        made: Any = TextToVideoSDPipeline(**parts)
    else:
        unet = UNetMotionModel.from_pretrained(folder / "unet")
        adapter = MotionAdapter(
            block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=8
        )
        made = AnimateDiffPipeline(**parts, unet=unet, motion_adapter=adapter)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", ["animatediff", "modelscope"])
@torch.no_grad()
def test_the_denoiser_is_the_pipelines_call(
    name: str, folders: dict[str, Path], models: dict[str, VideoModel]
) -> None:
    """One network call at one time, with the text as the pipeline encodes it, alone and guided."""
    model, made = models[name], pipeline(name, folders[name])
    z, t = inputs(1, 4)
    cond, uncond = made.encode_prompt(PROMPTS[0], "cpu", 1, True, None)

    def theirs(hidden: torch.Tensor) -> torch.Tensor:
        spoken = hidden.repeat_interleave(z.shape[2], dim=0) if name == "animatediff" else hidden
        return made.unet(z, t, encoder_hidden_states=spoken).sample

    text = model.text([PROMPTS[0]])
    torch.testing.assert_close(model.denoiser(z, t, text).eps, theirs(cond), rtol=1e-4, atol=1e-5)
    both = guided(model.denoiser, z, t, text, model.text([""]), 7.5)
    expected = theirs(uncond) + 7.5 * (theirs(cond) - theirs(uncond))
    torch.testing.assert_close(both.eps, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs(cond), theirs(uncond), atol=1e-4)  # the text is heard


@pytest.mark.parametrize("name", ["animatediff", "modelscope"])
def test_25_guided_steps_equal_the_pipelines(
    name: str, folders: dict[str, Path], models: dict[str, VideoModel]
) -> None:
    model, made = models[name], pipeline(name, folders[name])
    noise, _ = inputs(1, 4)

    def theirs(kind: str) -> torch.Tensor:
        return made(
            prompt=PROMPTS[0], num_frames=4, height=16, width=16, num_inference_steps=25, guidance_scale=7.5,
            latents=noise.clone(), output_type=kind, return_dict=False,
        )[0]  # fmt: skip

    text, empty = model.text([PROMPTS[0]]), model.text([""])
    ddim = DDIM.from_config(model.scheduler_config)
    with torch.no_grad():
        ours = sample(
            lambda z, t: guided(model.denoiser, z, t, text, empty, 7.5), model.path, ddim, noise, 25, torch.Generator()
        )  # fmt: skip
        decoded = model.codec.decode(ours).clamp(-1, 1).add(1).div(2).transpose(1, 2)
    latents = theirs("latent")
    assert latents.std() > 0.1
    torch.testing.assert_close(ours, latents, rtol=1e-3, atol=1e-4)
    frames = theirs("pt")
    assert ((frames > 0.01) & (frames < 0.99)).float().mean() > 0.5  # not all black or white, whatever made them
    torch.testing.assert_close(decoded, frames, rtol=1e-3, atol=1e-4)


def test_an_adapter_beside_a_picture_unet_is_the_same_teacher(models: dict[str, VideoModel]) -> None:
    z, t = inputs()
    motion, adapter = models["animatediff"], models["adapter"]
    text = motion.text(PROMPTS)
    ours, theirs = motion.denoiser(z, t, text).eps, adapter.denoiser(z, t, text).eps
    torch.testing.assert_close(ours, theirs)
    assert adapter.family == "animatediff"
    assert not any(module.training for module in adapter.denoiser.network.modules())


@pytest.mark.parametrize("name", ["animatediff", "modelscope"])
def test_clips_do_not_depend_on_their_neighbours(name: str, models: dict[str, VideoModel]) -> None:
    model = models[name]
    z, t = inputs(3, 5)
    text = model.text([*PROMPTS, ""])
    whole = model.denoiser(z, t, text)
    for i in range(3):
        alone = model.denoiser(z[i : i + 1], t[i : i + 1], TextEmbedding(*(part[i : i + 1] for part in text)))
        torch.testing.assert_close(alone.x0, whole.x0[i : i + 1], rtol=1e-3, atol=1e-4)
    one = model.denoiser(z, t, model.text([""]))
    torch.testing.assert_close(one.eps, model.denoiser(z, t, model.text([""] * 3)).eps)
    assert not torch.allclose(one.eps, whole.eps, atol=1e-4)  # the text is heard
    with pytest.raises(ValueError, match="2 prompts for 3 clips"):
        model.denoiser(z, t, model.text(PROMPTS))


@pytest.mark.parametrize("name", ["animatediff", "modelscope"])
def test_estimates_agree_with_z_and_gradients_reach_it(name: str, models: dict[str, VideoModel]) -> None:
    model = models[name]
    z, t = inputs()
    z.requires_grad_(True)
    model.denoiser.train()  # the temporal convolutions of UNet3D would drop out
    found, again = (model.denoiser(z, t, model.text(PROMPTS)) for _ in range(2))
    assert torch.equal(found.x0, again.x0)
    torch.testing.assert_close(model.path.diffuse(*found, t), z, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.x0.square().sum(), z)
    assert (gradient.abs().sum((1, 2, 3, 4)) > 0).all()
    assert not any(p.requires_grad for p in model.denoiser.parameters())


@pytest.mark.parametrize("name", ["animatediff", "modelscope"])
def test_control_residuals_reach_the_network(name: str, models: dict[str, VideoModel]) -> None:
    model = models[name]
    z, t = inputs(1, 2)
    text = model.text([""])
    shapes = [(2, 16, 8, 8), (2, 16, 8, 8), (2, 16, 4, 4), (2, 32, 4, 4)]
    zero = Control(tuple(torch.zeros(shape) for shape in shapes), torch.zeros(2, 32, 4, 4))
    bare = model.denoiser(z, t, text).eps
    torch.testing.assert_close(model.denoiser(z, t, text, zero).eps, bare)
    for i in range(len(shapes)):
        down = tuple(r + (j == i) for j, r in enumerate(zero.down))
        assert not torch.allclose(model.denoiser(z, t, text, Control(down, zero.mid)).eps, bare, atol=1e-4)
    assert not torch.allclose(
        model.denoiser(z, t, text, Control(zero.down, zero.mid + 1)).eps, bare, atol=1e-4
    )


def test_facts_of_the_families(models: dict[str, VideoModel]) -> None:
    a, m = models["animatediff"], models["modelscope"]
    assert (a.family, a.frames, a.size, a.fps, a.guidance_scale) == ("animatediff", 16, (16, 16), 8, 7.5)
    assert (m.family, m.frames, m.size, m.fps, m.guidance_scale) == ("modelscope", 16, (16, 16), 8, 9)
    assert a.latent_shape() == (4, 16, 8, 8)
    assert m.latent_shape(20, (32, 24)) == (4, 20, 16, 12)
    assert a.scheduler_config["beta_schedule"] == "linear"
    assert a.denoiser.path is a.path
    assert a.denoiser.kind == "epsilon"


def test_facts_and_prediction_type_come_from_the_folder(broken: Path) -> None:
    (broken / "mcm.json").write_text(
        json.dumps({"frames": 6, "size": [8, 12], "fps": 12, "guidance_scale": 3})
    )
    path = broken / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    model = load_video_model(str(broken))
    assert (model.frames, model.size, model.fps, model.guidance_scale) == (6, (8, 12), 12, 3)
    assert model.denoiser.kind == "v_prediction"
    for wrong in (
        {"frame": 8},
        {"frames": 0},
        {"frames": 99},
        {"size": [64]},
        {"size": [9, 8]},
        {"fps": "8"},
    ):
        (broken / "mcm.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"frame|size|fps"):
            load_video_model(broken)


@pytest.mark.parametrize(
    ("frames", "size", "words"),
    [
        (17, (16, 16), "1 to 16 frames"),
        (0, (16, 16), "frames"),
        (8, (18, 16), "multiples of 4 .* 16 x 16|20 x 16"),
    ],
)
def test_geometry_that_the_teacher_cannot_take(
    frames: int, size: tuple[int, int], words: str, models: dict[str, VideoModel]
) -> None:
    with pytest.raises(UserError, match=words):
        models["animatediff"].check_geometry(frames, size)


def test_half_precision_weights_come_up_as_asked(broken: Path, models: dict[str, VideoModel]) -> None:
    for path in broken.rglob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    (broken / "unet" / "diffusion_pytorch_model.safetensors").rename(
        broken / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    model = load_video_model(broken)
    for part in (model.denoiser, model.codec, model.text):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    z, t = inputs()
    whole = models["animatediff"].denoiser(z, t, model.text(PROMPTS)).eps
    torch.testing.assert_close(model.denoiser(z, t, model.text(PROMPTS)).eps, whole, rtol=0.05, atol=0.05)
    assert (
        load_video_model(broken, dtype=torch.bfloat16).denoiser(z, t, model.text(PROMPTS)).x0.dtype == z.dtype
    )


def test_pocket_names_and_unknown_names(zoo: dict[str, Path], folders: dict[str, Path]) -> None:
    zoo["pocket-tiny"] = folders["modelscope"]
    model = load_video_model("pocket-tiny")
    assert (model.name, model.family, model.folder) == ("pocket-tiny", "modelscope", folders["modelscope"])
    with pytest.raises(UserError, match="no such folder"):
        load_video_model("pocket-other")


def test_hub_without_a_network(zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def offline(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"owner/model: .*hf download owner/model"):
        load_video_model("owner/model")
    assert asked["name"] == "owner/model"
    assert "unet/*.safetensors" in asked["allow_patterns"]
    assert not [p for p in asked["allow_patterns"] if p.endswith((".bin", ".py", "*"))]


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(part: str, broken: Path) -> None:
    shutil.rmtree(broken / part)
    with pytest.raises(UserError, match=f"{part}/ is missing"):
        load_video_model(broken)


def test_unknown_classes_are_named_with_the_families(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match=r"no model_index.json and no unet/config.json"):
        load_video_model(tmp_path)
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    message = r"StableDiffusionPipeline with UNet2DConditionModel .*animatediff.*modelscope"
    with pytest.raises(UserError, match=message):
        load_video_model(tmp_path)
    (tmp_path / "model_index.json").write_text("{broken")
    with pytest.raises(UserError, match=r"model_index\.json"):
        load_video_model(tmp_path)
    assert set(families()) >= {"animatediff", "modelscope"}


def test_bad_weights_are_named(broken: Path) -> None:
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    weights = load_file(path)
    del weights["conv_out.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weight.*conv_out.weight"):
        load_video_model(broken)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="unet: cannot be loaded"):
        load_video_model(broken)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"unet: no .safetensors weights"):
        load_video_model(broken)
    path.with_suffix(".bin").unlink()
    path.write_bytes(whole)
    words = broken / "text_encoder" / "model.safetensors"
    words.write_bytes(words.read_bytes()[:100])
    with pytest.raises(UserError, match="text_encoder: cannot be loaded"):
        load_video_model(broken)


def test_components_of_different_models_are_refused(broken: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(latent_channels=8, norm_num_groups=4, block_out_channels=(8,)).save_pretrained(
        broken / "vae"
    )
    with pytest.raises(UserError, match="4 latent channels, vae/ makes 8"):
        load_video_model(broken)


def test_text_of_another_width_is_refused(broken: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig.from_pretrained(broken / "text_encoder", hidden_size=8)
    CLIPTextModel(config).save_pretrained(broken / "text_encoder")
    with pytest.raises(UserError, match="width 16, text_encoder/ gives 8"):
        load_video_model(broken)
