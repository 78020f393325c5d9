"""The video codec and the text encoder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny import LENGTH, tiny_modelscope

from mcm.errors import UserError
from mcm.models.text import TextEncoder
from mcm.models.video import VideoCodec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_modelscope(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def codec(folder: Path) -> VideoCodec:
    return VideoCodec.load(folder)


@pytest.fixture(scope="module")
def text(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder)


def video(batch: int = 2, frames: int = 5) -> torch.Tensor:
    return torch.rand(batch, 3, frames, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_are_the_scaled_mean_or_a_sample_of_the_posterior(codec: VideoCodec) -> None:
    x = video()
    z = codec.encode(x)
    assert z.shape == (2, 4, 5, 8, 8)
    assert (codec.factor, codec.channels) == (2, 4)
    frame = codec.vae.encode(x[1, :, 3][None]).latent_dist
    torch.testing.assert_close(z[1, :, 3], 0.5 * frame.mean[0])
    drawn = codec.encode(x, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, codec.encode(x, torch.Generator().manual_seed(1)))
    away = (drawn - z)[1, :, 3] / (0.5 * frame.std[0])
    assert 0.8 < float(away.std()) < 1.2


def test_decoding_inverts_the_scale_and_shift(codec: VideoCodec) -> None:
    z = codec.encode(video())
    frames = codec.vae.decode(z[0].transpose(0, 1) / 0.5).sample
    torch.testing.assert_close(codec.decode(z)[0], frames.transpose(0, 1))
    moved = copy.deepcopy(codec)
    moved.shift = 0.25
    torch.testing.assert_close(moved.encode(video()), z - 0.25 * 0.5)
    torch.testing.assert_close(moved.decode(z - 0.25 * 0.5), codec.decode(z))


def test_slices_change_nothing(codec: VideoCodec) -> None:
    x = video()
    small = VideoCodec(codec.vae, slice_frames=3)
    torch.testing.assert_close(small.encode(x), codec.encode(x))
    torch.testing.assert_close(small.decode(codec.encode(x)), codec.decode(codec.encode(x)))


def test_picked_frames_are_those_of_the_whole_and_carry_gradients(codec: VideoCodec) -> None:
    z = codec.encode(video()).requires_grad_(True)
    index = torch.tensor([[4, 0], [2, 2]])
    frames = codec.decode_frames(z, index)
    whole = codec.decode(z)
    assert frames.shape == (4, 3, 16, 16)
    expected = [whole[0, :, 4], whole[0, :, 0], whole[1, :, 2], whole[1, :, 2]]
    torch.testing.assert_close(frames, torch.stack(expected))
    (gradient,) = torch.autograd.grad(frames.square().sum(), z)
    touched = gradient.abs().sum((1, 3, 4)) > 0
    assert touched.tolist() == [[True, False, False, False, True], [False, False, True, False, False]]
    assert not any(p.requires_grad for p in codec.parameters())


def test_text_is_padded_hidden_and_pooled_as_the_tower_says(text: TextEncoder) -> None:
    prompts = ["a red puppet walks", "", "a red puppet walks in the park at night a red puppet"]
    found = text(prompts)
    ids = text.tokenizer(
        prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    assert ids.shape == (3, LENGTH)
    assert ids[0].tolist().index(text.tokenizer.eos_token_id) == 5  # start, four words, end
    theirs = text.network(ids)
    torch.testing.assert_close(found.hidden, theirs.last_hidden_state)
    torch.testing.assert_close(found.pooled, theirs.pooler_output)
    assert not found.hidden.requires_grad


@pytest.mark.parametrize("stated", [2, 0])
def test_pooling_does_not_trust_the_configuration(text: TextEncoder, folder: Path, stated: int) -> None:
    # 2 is what old files say (transformers then takes the highest token); with 0 it would pool the first one
    other = TextEncoder.load(folder)
    other.network.config.eos_token_id = other.network.eos_token_id = stated
    assert torch.equal(other(["a blue puppet"]).pooled, text(["a blue puppet"]).pooled)


def test_an_embedding_does_not_depend_on_company_or_cache(text: TextEncoder, folder: Path) -> None:
    alone = TextEncoder.load(folder)(["a blue puppet jumps"])
    again = text(["a red puppet", "a blue puppet jumps", "a red puppet"])
    assert torch.equal(again.hidden[1], alone.hidden[0])
    assert torch.equal(again.pooled[0], again.pooled[2])
    assert torch.equal(text(["a blue puppet jumps"]).pooled, alone.pooled)


def test_repeated_captions_are_encoded_once_and_the_cache_is_bounded(folder: Path) -> None:
    text = TextEncoder.load(folder)
    calls: list[int] = []
    text.network.register_forward_hook(lambda *_: calls.append(1))
    text(["a", "the", "a"])
    text(["the", "a"])
    assert len(calls) == 2
    text.cache_bytes = 2 * LENGTH * text.width * 4
    text(["red", "blue"])
    assert list(text._cache) == ["red", "blue"]
    text.to(torch.float64)
    assert text(["red"]).hidden.dtype == torch.float64


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    from transformers import CLIPTextConfig, CLIPTextModel

    wrong = Path(shutil.copytree(folder, tmp_path / "wrong"))
    config = CLIPTextConfig(
        vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(wrong / "text_encoder")
    with pytest.raises(UserError, match=r"tokenizer: .* knows 30"):
        TextEncoder.load(wrong)


def test_a_bare_string_is_not_a_list_of_captions(text: TextEncoder) -> None:
    with pytest.raises(ValueError, match="list"):
        text("a red puppet")


def test_weights_under_the_older_names_are_read(text: TextEncoder, folder: Path, tmp_path: Path) -> None:
    # Stable Diffusion's and ModelScope's files say text_model.encoder..., whatever transformers writes today
    import shutil

    from safetensors.torch import load_file, save_file

    old = Path(shutil.copytree(folder, tmp_path / "old"))
    path = old / "text_encoder" / "model.safetensors"
    bare = {name.removeprefix("text_model."): weight for name, weight in load_file(path).items()}
    positions = {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}
    save_file({f"text_model.{k}": v for k, v in bare.items()} | positions, path, metadata={"format": "pt"})
    assert torch.equal(TextEncoder.load(old)(["a red puppet"]).hidden, text(["a red puppet"]).hidden)
