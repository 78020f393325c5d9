"""CogVideoX: equality with diffusers' own pipeline, its autoencoder and text, and a student of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stage import make_batch, make_players
from tiny_run import make_material, recipe
from tiny_transformers import tiny_cogvideox
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from mcm.data.video import probe
from mcm.diffusion.paths import Denoised
from mcm.distill import distill
from mcm.errors import UserError
from mcm.generate import generate, load_maker, save_video
from mcm.methods import method
from mcm.models import text as text_module
from mcm.models.guidance import guided
from mcm.models.student import Student
from mcm.models.video import VideoModel, load_video_model
from mcm.samplers import sample, sampler

PROMPT = "a red puppet walks"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    return {"2b": tiny_cogvideox(root / "2b"), "5b": tiny_cogvideox(root / "5b", rotary=True)}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, VideoModel]:
    return {name: load_video_model(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make_players` puts its teacher."""
    return tmp_path_factory.mktemp("stage")


def pipeline(folder: Path) -> Any:
    """diffusers' own, put together from the folder's parts."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import AutoTokenizer, T5EncoderModel

    made = CogVideoXPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
        vae=AutoencoderKLCogVideoX.from_pretrained(folder / "vae"),
        transformer=CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").eval(),
        scheduler=CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler"),
    )
    made.set_progress_bar_config(disable=True)
    return made


def noise(model: VideoModel, batch: int = 1, frames: int = 9, size: tuple[int, int] = (32, 48)) -> Tensor:
    return torch.randn(batch, *model.latent_shape(frames, size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["2b", "5b"])
@torch.no_grad()
def test_the_denoiser_is_the_pipelines_call(name: str, folders: dict[str, Path], models: dict[str, VideoModel]) -> None:
    model, made = models[name], pipeline(folders[name])
    z, t = noise(model, 2), torch.tensor([999, 380])
    cond, uncond = made.encode_prompt(PROMPT, max_sequence_length=12)
    rotary = made._prepare_rotary_positional_embeddings(32, 48, 3, z.device) if name == "5b" else None

    def their_v(text: Tensor) -> Tensor:
        both = text.expand(2, -1, -1)
        frames_first = z.transpose(1, 2)
        return made.transformer(frames_first, both, t, image_rotary_emb=rotary, return_dict=False)[0].transpose(1, 2)

    def v(said: Denoised) -> Tensor:
        alpha, sigma = (x.reshape(-1, 1, 1, 1, 1) for x in (model.path.alpha(t), model.path.sigma(t)))
        return alpha * said.eps - sigma * said.x0

    said = model.denoiser(z, t, model.text([PROMPT]))
    torch.testing.assert_close(v(said), their_v(cond), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said.x0[0], -their_v(cond)[0], rtol=1e-4, atol=1e-4)  # alpha is 0 at the last time
    assert torch.isfinite(said.eps).all()
    both = guided(model.denoiser, z, t, model.text([PROMPT] * 2), model.text([""]), 6.0)
    assert not torch.allclose(their_v(cond), their_v(uncond), atol=1e-3)  # the text is heard
    expected = their_v(uncond) + 6 * (their_v(cond) - their_v(uncond))
    torch.testing.assert_close(v(both), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["2b", "5b"])
@pytest.mark.parametrize("frames", [9, 17])  # what the tiny teachers were made for, and more
def test_25_guided_steps_equal_the_pipelines(
    name: str, frames: int, folders: dict[str, Path], models: dict[str, VideoModel]
) -> None:
    model, made = models[name], pipeline(folders[name])
    start = noise(model, frames=frames)

    def theirs(kind: str) -> Any:
        return made(
            prompt=PROMPT, num_frames=frames, height=32, width=48, num_inference_steps=25, guidance_scale=6.0,
            latents=start.transpose(1, 2).clone(), max_sequence_length=12, output_type=kind, return_dict=False,
        )[0]  # fmt: skip

    text, empty = model.text([PROMPT]), model.text([""])
    ddim = sampler("ddim").from_config(model.scheduler_config)
    with torch.no_grad():
        found = sample(
            lambda z, t: guided(model.denoiser, z, t, text, empty, 6.0), model.path, ddim, start, 25, torch.Generator()
        )  # fmt: skip
        decoded = model.codec.decode(found).clamp(-1, 1).add(1).div(2).transpose(1, 2)
    torch.testing.assert_close(found.transpose(1, 2), theirs("latent"), rtol=1e-4, atol=1e-4)
    if frames == 9:
        torch.testing.assert_close(decoded, theirs("pt"), rtol=1e-3, atol=1e-4)


def test_the_default_samplers_bear_zero_terminal_snr(models: dict[str, VideoModel]) -> None:
    model = models["2b"]
    text = model.text([PROMPT])
    for name in ("dpm++", "ddim", "euler", "consistency"):
        with torch.no_grad():
            made = sample(
                lambda z, t: model.denoiser(z, t, text), model.path, sampler(name), noise(model), 4, torch.Generator()
            )
        assert torch.isfinite(made).all(), name


@torch.no_grad()
def test_text_is_padded_as_the_pipeline_does(folders: dict[str, Path], models: dict[str, VideoModel]) -> None:
    text, made = models["2b"].text, pipeline(folders["2b"])
    prompts = [PROMPT, "", "a red puppet walks in the park at night a red puppet jumps"]
    found = text(prompts)
    expected, _ = made.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=12)
    assert found.hidden.shape == (3, 12, 16)
    torch.testing.assert_close(found.hidden, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pooled[0], expected[0, :5].mean(0), rtol=1e-4, atol=1e-5)  # four words, the end
    torch.testing.assert_close(found.pooled[2], expected[2].mean(0), rtol=1e-4, atol=1e-5)


def film(frames: int) -> Tensor:
    return torch.rand(2, 3, frames, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 9, 17])
def test_latents_are_scaled_and_come_back_as_so_many_frames(frames: int, models: dict[str, VideoModel]) -> None:
    codec = models["2b"].codec
    x = film(frames)
    z = codec.encode(x)
    assert z.shape == (2, 4, codec.latent_frames(frames), 4, 4)
    torch.testing.assert_close(z[1], 0.7 * codec.vae.encode(x[1:]).latent_dist.mean[0])
    found, expected = codec.decode(z), codec.vae.decode(z / 0.7).sample
    assert found.shape == x.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_frames_that_the_autoencoder_cannot_take(models: dict[str, VideoModel]) -> None:
    codec = models["2b"].codec
    with pytest.raises(ValueError, match="13 frames: expected a multiple of 8 and one more"):
        codec.encode(film(13))
    with pytest.raises(ValueError, match="4 latent frames: expected an odd number"):
        codec.decode(torch.zeros(1, 4, 4, 4, 4))


def test_picked_frames_are_those_of_the_whole(models: dict[str, VideoModel]) -> None:
    codec = models["2b"].codec
    z = torch.randn(2, 4, 7, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    with torch.no_grad():
        whole = codec.decode(z)
    frames = codec.decode_frames(z, torch.tensor([[24, 0], [8, 9]]))
    expected = [whole[0, :, 24], whole[0, :, 0], whole[1, :, 8], whole[1, :, 9]]
    torch.testing.assert_close(frames, torch.stack(expected), rtol=1e-4, atol=1e-5)
    late = codec.decode_frames(z, torch.tensor([[24], [8]]))
    (gradient,) = torch.autograd.grad(late.square().sum(), z)
    touched = (gradient.abs().sum((1, 3, 4)) > 0).tolist()
    assert touched == [[False] * 3 + [True] * 4, [True] * 3 + [False] * 4]  # its own part and the one before
    (full,) = torch.autograd.grad(codec.decode(z)[1, :, 8].square().sum(), z)
    torch.testing.assert_close(gradient[1], full[1], rtol=1e-3, atol=1e-5)


def test_facts_and_geometry(models: dict[str, VideoModel]) -> None:
    model = models["2b"]
    facts = (model.family, model.frames, model.size, model.fps, model.guidance_scale)
    assert facts == ("cogvideox", 9, (32, 48), 8, 6)
    assert (model.denoiser.kind, model.latent_shape()) == ("v_prediction", (4, 3, 4, 6))
    for frames, size, words in (
        (13, (32, 32), "frames 13: .*multiple of 8 and one frame more.* 9 or 17"),
        (0, (32, 32), "at least 1"),
        (9, (24, 32), "multiples of 16 pixels, for instance 32 x 32"),
    ):
        with pytest.raises(UserError, match=words):
            model.check_geometry(frames, size)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"in_channels": 8}, r"wants a picture beside the noise \(8 channels in, 4 out\)"),
        ({"patch_size_t": 2, "rotary": True}, r"patch_size_t 2\), as CogVideoX 1.5 has"),
        ({"text_embed_dim": 8}, "transformer/ reads text of width 8, text_encoder/ gives 16"),
        ({"in_channels": 6, "out_channels": 6}, "transformer/ takes 6 latent channels, vae/ makes 4"),
    ],
)
def test_what_is_not_this_family(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        load_video_model(tiny_cogvideox(tmp_path, **changed))


def test_a_scheduler_that_does_not_say_its_shift(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["2b"], tmp_path / "broken"))
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "snr_shift_scale"}))
    with pytest.raises(UserError, match="'snr_shift_scale' is missing"):
        load_video_model(folder)
    path.write_text(json.dumps({**config, "prediction_type": "epsilon"}))
    with pytest.raises(UserError, match="prediction_type 'epsilon' says nothing"):
        load_video_model(folder)


def test_words_in_sentencepiece_alone_take_its_library(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(folders["2b"], tmp_path / "broken"))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    monkeypatch.setattr(text_module, "_installed", lambda name: name != "sentencepiece")
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        load_video_model(folder)


def test_words_in_sentencepiece_alone_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """As THUDM/CogVideoX-2b has them: spiece.model and its configuration, no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = Path(shutil.copytree(folders["2b"], tmp_path / "pieces"))
    words = folder / "tokenizer"
    for file in words.iterdir():
        file.unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT, "a dog runs on the beach", "two birds sing in a tree"] * 20),
        model_prefix=str(words / "spiece"), vocab_size=28, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (words / "spiece.vocab").unlink()
    (words / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    config = T5Config.from_pretrained(folder / "text_encoder", vocab_size=28)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    text = load_video_model(folder).text
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(words / "spiece.model"))
    for prompt in ("a dog", PROMPT):  # the second is cut
        ids = text._tokens(prompt).input_ids[0].tolist()
        known = [*pieces.encode(prompt)[: len(ids) - 1], 1]
        assert len(known) > 3
        assert ids == known + [0] * (len(ids) - len(known))
    assert text([PROMPT]).hidden.isfinite().all()


@pytest.mark.parametrize("targets", ["all", "attention"])
def test_adapters_find_the_layers(targets: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_video_model(folders["5b"])
    z, t, text = noise(model), torch.tensor([900]), model.text([PROMPT])
    with torch.no_grad():
        bare = model.denoiser(z, t, text).x0
    student = Student.lora(
        model.denoiser, rank=2, alpha=2, targets=targets, checkpointing=True, rng=torch.Generator().manual_seed(0)
    )
    layers = {key.rsplit(".lora_", 1)[0] for key in student.trainable()}
    projections = {f"transformer_blocks.{b}.attn1.{p}" for b in (0, 1) for p in ("to_q", "to_k", "to_v", "to_out.0")}
    assert layers >= projections
    assert (layers == projections) == (targets == "attention")
    with torch.no_grad():
        for weight in student.trainable().values():
            weight.add_(0.05)
        changed = student(z, t, text).x0
        assert not torch.allclose(changed, bare, atol=1e-4)
        assert torch.equal(student.teacher(z, t, text).x0, bare)
        student.save(tmp_path)
        again = Student.load(load_video_model(folders["5b"]).denoiser, tmp_path)
        torch.testing.assert_close(again(z, t, text).x0, changed)
    student(z, t, text).x0.square().mean().backward()
    assert all(weight.grad is not None for weight in student.trainable().values())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("lcm", {}), ("lcm", {"adversary": "video"}), ("mcm", {"generated_probability": 1.0}), ("frames", {})],
)
def test_a_training_step(name: str, settings: dict[str, Any], stage: Path) -> None:
    chosen = method(name, **settings)
    players = make_players(stage, chosen, "cogvideox")
    seen = []
    for turn in chosen.turns(players, make_batch(players), torch.Generator().manual_seed(0)):
        sum(turn.losses.values()).backward()  # type: ignore[union-attr]
        grads = [p.grad for p in players.parameters(turn.player).values() if p.grad is not None]
        assert any(g.abs().sum() > 0 for g in grads)
        assert all(torch.isfinite(g).all() for g in grads)
        seen.append(turn.player)
    assert seen == list(chosen.order)


def test_from_a_recipe_to_a_film(folders: dict[str, Path], tmp_path: Path) -> None:
    place = make_material(tmp_path / "place")
    shutil.copytree(folders["2b"], place / "cogvideox")
    card = distill(recipe(place, "cogvideox", data__frames=9, method={"name": "mcm"}), tmp_path / "out")
    assert (card.family, card.frames, card.size, card.fps) == ("cogvideox", 9, (32, 48), 8)
    maker = load_maker(tmp_path / "out")
    (video,) = generate(maker, PROMPT, steps=2)
    assert video.frames.shape == (9, 32, 48, 3)
    info = probe(save_video(video, tmp_path / "films"))
    assert (info.size, info.frames, info.fps) == ((32, 48), 9, 8)
    with pytest.raises(UserError, match=r"frames 10: .*9 or 17"):
        generate(maker, PROMPT, frames=10)
    (film_of_the_teacher,) = generate(place / "cogvideox", PROMPT, steps=2)
    assert film_of_the_teacher.settings["guidance_scale"] == 6
