"""Wan: equality with diffusers' own pipeline, its autoencoder and text, Wan 2.2's experts, and a student of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stage import make_batch, make_players
from tiny_run import make_material, recipe
from tiny_transformers import tiny_wan
from torch import Tensor

from mcm.data.video import probe
from mcm.diffusion.paths import Denoised, RectifiedFlow
from mcm.distill import distill
from mcm.errors import UserError
from mcm.generate import generate, load_maker, save_video
from mcm.methods import method
from mcm.models.guidance import guided
from mcm.models.student import Student
from mcm.models.video import VideoModel, load_video_model
from mcm.models.wan import WanCodec
from mcm.samplers import sample, sampler

PROMPT = "a red puppet walks"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    return {"one": tiny_wan(root / "one"), "experts": tiny_wan(root / "experts", experts=0.8)}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, VideoModel]:
    return {name: load_video_model(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make_players` puts its teacher."""
    return tmp_path_factory.mktemp("stage")


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["experts"], tmp_path / "broken"))


def pipeline(folder: Path, **settings: Any) -> Any:
    """diffusers' own, put together from the folder's parts."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    second = folder / "transformer_2"
    made = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        transformer=WanTransformer3DModel.from_pretrained(folder / "transformer"),
        transformer_2=WanTransformer3DModel.from_pretrained(second) if second.is_dir() else None,
        boundary_ratio=json.loads((folder / "model_index.json").read_text())["boundary_ratio"],
        **settings,
    )
    made.set_progress_bar_config(disable=True)
    return made


def noise(model: VideoModel, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, *model.latent_shape(9, (32, 48)), generator=torch.Generator().manual_seed(seed))


def ours(model: VideoModel, start: Tensor, steps: int, scale: float) -> Tensor:
    text, empty = model.text([PROMPT]), model.text([""])

    def denoise(z: Tensor, t: Tensor) -> Denoised:
        return guided(model.denoiser, z, t, text, empty, scale)

    euler = sampler("euler").from_config(model.scheduler_config)
    with torch.no_grad():
        return sample(denoise, model.path, euler, start, steps, torch.Generator())


def theirs(made: Any, start: Tensor, steps: int, scale: float, **settings: Any) -> Any:
    return made(
        prompt=PROMPT, num_frames=9, height=32, width=48, num_inference_steps=steps, guidance_scale=scale,
        latents=start.clone(), return_dict=False, **settings,
    )[0]  # fmt: skip


@torch.no_grad()
def test_the_denoiser_is_the_pipelines_call(folders: dict[str, Path], models: dict[str, VideoModel]) -> None:
    model, made = models["one"], pipeline(folders["one"])
    z, t = noise(model, 2), torch.tensor([930.5, 41.0])
    cond, uncond = made.encode_prompt(PROMPT, max_sequence_length=512)
    said = model.denoiser(z, t, model.text([PROMPT]))
    flow = made.transformer(z, t, cond.expand(2, -1, -1), return_dict=False)[0]
    torch.testing.assert_close(said.eps - said.x0, flow, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.path.diffuse(*said, t), z, rtol=1e-4, atol=1e-4)
    both = guided(model.denoiser, z, t, model.text([PROMPT] * 2), model.text([""]), 5.0)
    other = made.transformer(z, t, uncond.expand(2, -1, -1), return_dict=False)[0]
    assert not torch.allclose(other, flow, atol=1e-3)  # the text is heard
    torch.testing.assert_close(both.eps - both.x0, other + 5 * (flow - other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["one", "experts"])
def test_25_guided_steps_equal_the_pipelines(
    name: str, folders: dict[str, Path], models: dict[str, VideoModel]
) -> None:
    model, made = models[name], pipeline(folders[name])
    start = noise(model)
    found = ours(model, start, 25, 5.0)
    torch.testing.assert_close(found, theirs(made, start, 25, 5.0, output_type="latent"), rtol=1e-4, atol=1e-4)
    pixels = theirs(made, start, 25, 5.0, output_type="pt")
    decoded = model.codec.decode(found).clamp(-1, 1).add(1).div(2).transpose(1, 2)
    torch.testing.assert_close(decoded, pixels, rtol=1e-3, atol=1e-4)


def test_a_time_for_each_token_is_the_time_of_the_clip(folders: dict[str, Path], models: dict[str, VideoModel]) -> None:
    """What the pipeline of Wan 2.2's TI2V-5B does (expand_timesteps) where there is no picture."""
    start = noise(models["one"])
    tokens = theirs(pipeline(folders["one"], expand_timesteps=True), start, 3, 5.0, output_type="latent")
    torch.testing.assert_close(ours(models["one"], start, 3, 5.0), tokens, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_clip_goes_to_the_expert_of_its_time(models: dict[str, VideoModel]) -> None:
    model = models["experts"]
    network: Any = model.denoiser.network
    z, t, text = noise(model, 4), torch.tensor([799.9, 800.0, 10.0, 1000.0]), model.text([PROMPT])
    said = network(z, t, text.hidden.expand(4, -1, -1))[0]
    for i, expert in enumerate(
        [network.transformer_2, network.transformer, network.transformer_2, network.transformer]
    ):
        alone = expert(z[i : i + 1], t[i : i + 1], text.hidden, return_dict=False)[0]
        torch.testing.assert_close(said[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_shipped_unipc_scheduler_is_read_as_the_same_flow(folders: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import UniPCMultistepScheduler

    folder = Path(shutil.copytree(folders["one"], tmp_path / "unipc"))
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    ).save_pretrained(folder / "scheduler")
    model = load_video_model(folder)
    assert isinstance(model.path, RectifiedFlow)
    assert (model.path.shift, model.denoiser.kind) == (3.0, "flow")


@torch.no_grad()
def test_text_is_padded_as_the_pipeline_does(folders: dict[str, Path], models: dict[str, VideoModel]) -> None:
    text = models["one"].text
    made = pipeline(folders["one"])
    prompts = [PROMPT, "  a red\n puppet &amp;  walks ", "", "puppet"]
    found = text(prompts)
    expected, _ = made.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)
    assert found.hidden.shape == (4, 512, 16)
    torch.testing.assert_close(found.hidden, expected, rtol=1e-4, atol=1e-5)
    assert not found.hidden[0, 5:].any()  # four words and the end
    torch.testing.assert_close(found.pooled[0], expected[0, :5].mean(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.hidden[3], text(["puppet"]).hidden[0])


def film(frames: int = 9) -> Tensor:
    return torch.rand(2, 3, frames, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_latents_have_their_own_mean_and_spread(models: dict[str, VideoModel]) -> None:
    codec = models["one"].codec
    x = film()
    z = codec.encode(x)
    assert z.shape == (2, 4, 3, 4, 4)
    mean = codec.vae.encode(x[1:]).latent_dist.mean[0]
    stds, means = torch.tensor([0.5, 1.5, 1.0, 2.0]), torch.tensor([0.1, -0.2, 0.3, 0.0])
    torch.testing.assert_close(z[1], (mean - means[:, None, None, None]) / stds[:, None, None, None])
    drawn = codec.encode(x, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, codec.encode(x, torch.Generator().manual_seed(1)))
    assert not torch.allclose(drawn, z)
    with pytest.raises(ValueError, match="8 frames: expected a multiple of 4 and one more"):
        codec.encode(x[:, :, :8])


def test_picked_frames_are_those_of_the_whole(models: dict[str, VideoModel]) -> None:
    codec = models["one"].codec
    z = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    with torch.no_grad():
        whole = codec.decode(z)
        outside = codec.vae.decode(z / codec.scaling + codec.shift).sample
    assert whole.shape == (2, 3, 13, 32, 32)
    torch.testing.assert_close(whole.clamp(-1, 1), outside, rtol=1e-4, atol=1e-5)
    index = torch.tensor([[12, 0], [3, 4]])
    frames = codec.decode_frames(z, index)
    expected = [whole[0, :, 12], whole[0, :, 0], whole[1, :, 3], whole[1, :, 4]]
    torch.testing.assert_close(frames, torch.stack(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="frame 13: 4 latent frames decode to 13 frames"):
        codec.decode_frames(z, torch.tensor([[13], [0]]))


def test_gradients_reach_a_frames_own_latents_and_those_before(models: dict[str, VideoModel]) -> None:
    codec = models["one"].codec
    z = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    frames = codec.decode_frames(z, torch.tensor([[12], [1]]))
    (gradient,) = torch.autograd.grad(frames.square().sum(), z)
    assert (gradient.abs().sum((1, 3, 4)) > 0).tolist() == [[False, False, True, True], [True, True, False, False]]
    (full,) = torch.autograd.grad(codec.decode(z)[1, :, 1].square().sum(), z)
    torch.testing.assert_close(gradient[1], full[1], rtol=1e-3, atol=1e-5)  # nothing lies before: it is exact
    assert not any(p.requires_grad for p in codec.parameters())


def test_pixels_of_a_patched_autoencoder() -> None:
    """Wan 2.2's TI2V-5B: the autoencoder works on patches of 2 x 2 pixels and has residual ways."""
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=4, decoder_base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, is_residual=True,
            temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4, patch_size=2,
            in_channels=12, out_channels=12, scale_factor_spatial=16,
        )  # fmt: skip
    codec = WanCodec(vae)
    z = codec.encode(film())
    assert z.shape == (2, 4, 3, 2, 2)
    with torch.no_grad():
        found, expected = codec.decode(z), vae.decode(z).sample
    assert found.shape == (2, 3, 9, 32, 32)
    torch.testing.assert_close(found.clamp(-1, 1), expected, rtol=1e-4, atol=1e-5)


def test_facts_and_geometry(models: dict[str, VideoModel], folders: dict[str, Path], tmp_path: Path) -> None:
    model = models["one"]
    assert (model.family, model.frames, model.size, model.fps, model.guidance_scale) == ("wan", 9, (32, 32), 16, 5)
    assert model.latent_shape() == (4, 3, 4, 4)
    assert models["experts"].guidance_scale == 4
    bare = Path(shutil.copytree(folders["one"], tmp_path / "bare"))
    (bare / "mcm.json").unlink()
    assert (load_video_model(bare).frames, load_video_model(bare).size) == (81, (480, 832))
    for frames, size, words in (
        (8, (32, 32), "frames 8: .*multiple of 4 and one frame more.* 5 or 9"),
        (124, (32, 32), "for instance 121 or 125"),
        (129, (32, 32), "takes 1 to 125 frames"),
        (9, (32, 40), "multiples of 16 pixels, for instance 32 x 32"),
    ):
        with pytest.raises(UserError, match=words):
            model.check_geometry(frames, size)


def test_weights_in_bfloat16(folders: dict[str, Path], models: dict[str, VideoModel]) -> None:
    """Wan's norms stay in float32; what goes into the network must not follow those."""
    model = load_video_model(folders["one"], dtype=torch.bfloat16)
    kinds = {p.dtype for p in model.denoiser.parameters()}
    assert kinds == {torch.float32, torch.bfloat16}
    z, t = noise(model), torch.tensor([500.0])
    with torch.no_grad():
        found = model.denoiser(z, t, model.text([PROMPT])).x0
        whole = models["one"].denoiser(z, t, models["one"].text([PROMPT])).x0
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole, rtol=0.1, atol=0.1)


def test_what_is_no_text_to_video_wan(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wants a picture beside the noise \(8 channels in, 4 out\)"):
        load_video_model(tiny_wan(tmp_path / "picture", in_channels=8))
    (broken / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(UserError, match=r"two transformers, but boundary_ratio in .*model_index.json is None"):
        load_video_model(broken)
    (broken / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.8}))
    shutil.rmtree(broken / "transformer_2")
    with pytest.raises(UserError, match="its folder transformer_2/ is missing"):
        load_video_model(broken)
    tiny_wan(tmp_path / "other", experts=0.5, num_layers=1)
    shutil.copytree(tmp_path / "other" / "transformer_2", broken / "transformer_2")
    with pytest.raises(UserError, match="transformer/ and transformer_2/ have different configurations"):
        load_video_model(broken)


def test_a_missing_text_encoder_is_named(broken: Path) -> None:
    shutil.rmtree(broken / "text_encoder")
    with pytest.raises(UserError, match="text_encoder/ is missing"):
        load_video_model(broken)


def test_text_of_another_width(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"transformer/ reads text of width 8, text_encoder/ gives 16"):
        load_video_model(tiny_wan(tmp_path / "narrow", text_dim=8))


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def offline(name: str, **settings: Any) -> str:
        asked.update(settings)
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers`, copy the folder here"):
        load_video_model("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    wanted = asked["allow_patterns"]
    assert {"transformer/*.safetensors", "transformer_2/*.safetensors", "tokenizer/spiece.model"} <= set(wanted)


@pytest.mark.parametrize("targets", ["all", "attention"])
@pytest.mark.parametrize("name", ["one", "experts"])
def test_adapters_find_the_layers(name: str, targets: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_video_model(folders[name])
    z, t, text = noise(model, 2), torch.tensor([900.0, 100.0]), model.text([PROMPT])
    with torch.no_grad():
        bare = model.denoiser(z, t, text).x0
    student = Student.lora(model.denoiser, rank=2, alpha=2, targets=targets, rng=torch.Generator().manual_seed(0))
    layers = {key.rsplit(".lora_", 1)[0] for key in student.trainable()}
    whole = {key.removeprefix("transformer_2.").removeprefix("transformer.") for key in layers}
    projections = {
        f"blocks.{b}.attn{a}.{p}" for b in (0, 1) for a in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert whole >= projections
    assert (whole == projections) == (targets == "attention")
    assert len(layers) == len(whole) * (2 if name == "experts" else 1)
    with torch.no_grad():
        for weight in student.trainable().values():
            weight.add_(0.05)
        changed = student(z, t, text).x0
        assert not torch.allclose(changed[0], bare[0], atol=1e-4)  # either expert's clip
        assert not torch.allclose(changed[1], bare[1], atol=1e-4)
        assert torch.equal(student.teacher(z, t, text).x0, bare)
        student.save(tmp_path)
        again = Student.load(load_video_model(folders[name]).denoiser, tmp_path)
        torch.testing.assert_close(again(z, t, text).x0, changed)


def test_a_full_student(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_video_model(folders["one"])
    student = Student.full(model.denoiser)
    z, t, text = noise(model), torch.tensor([900.0]), model.text([PROMPT])
    with torch.no_grad():
        for weight in student.trainable().values():
            weight.mul_(1.1)
        student.save(tmp_path)
        found = Student.load(model.denoiser, tmp_path)(z, t, text).x0
        torch.testing.assert_close(found, student(z, t, text).x0)
        assert not torch.allclose(found, model.denoiser(z, t, text).x0, atol=1e-3)
    with pytest.raises(UserError, match=r"full student .* Experts .* adapters"):
        Student.full(load_video_model(folders["experts"]).denoiser)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("lcm", {}), ("lcm", {"adversary": "video"}), ("mcm", {"generated_probability": 1.0}), ("frames", {})],
)
def test_a_training_step(name: str, settings: dict[str, Any], stage: Path) -> None:
    chosen = method(name, **settings)
    players = make_players(stage, chosen, "wan")
    seen = []
    for turn in chosen.turns(players, make_batch(players), torch.Generator().manual_seed(0)):
        sum(turn.losses.values()).backward()  # type: ignore[union-attr]
        grads = [p.grad for p in players.parameters(turn.player).values() if p.grad is not None]
        assert any(g.abs().sum() > 0 for g in grads)
        assert all(torch.isfinite(g).all() for g in grads)
        seen.append(turn.player)
    assert seen == list(chosen.order)


@pytest.mark.parametrize("name", ["animatelcm", "animatediff-lightning"])
def test_methods_that_need_a_picture_model_say_so(name: str, models: dict[str, VideoModel]) -> None:
    with pytest.raises(UserError, match=r"WanTransformer3DModel has no picture model .*animatediff"):
        method(name).check(models["one"])


def test_from_a_recipe_to_a_film(folders: dict[str, Path], tmp_path: Path) -> None:
    place = make_material(tmp_path / "place")
    shutil.copytree(folders["one"], place / "wan")
    run = recipe(place, "wan", data__frames=5, method={"name": "mcm", "frames_picked": 2}, data__size=(32, 32))
    card = distill(run, tmp_path / "out")
    assert (card.family, card.frames, card.size, card.fps) == ("wan", 5, (32, 32), 16)
    maker = load_maker(tmp_path / "out")
    (video,) = generate(maker, PROMPT, steps=2)
    assert video.frames.shape == (5, 32, 32, 3)
    info = probe(save_video(video, tmp_path / "films"))
    assert (info.size, info.frames, info.fps) == ((32, 32), 5, 16)
    with pytest.raises(UserError, match=r"frames 6: .*5 or 9"):
        generate(maker, PROMPT, frames=6)
