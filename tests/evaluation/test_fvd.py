"""Features of a VideoMAE folder: the folder's own network, frames, sizes and normalisation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel

from mcm.errors import UserError
from mcm.evaluation.fvd import VideoFeatures, frame_index, fvd
from mcm.evaluation.networks import resize

Clips = Callable[..., Tensor]


def test_features_are_the_mean_last_hidden_state(videomae_folder: Path, noise_videos: Clips) -> None:
    network = VideoMAEForVideoClassification.from_pretrained(videomae_folder).eval()
    videos = noise_videos(5, seed=0)
    with (
        torch.no_grad()
    ):  # 0.5 / 0.5 normalisation of [0, 1] is [-1, 1] itself; VideoMAE wants (B, T, C, H, W)
        expected = network.videomae(videos.transpose(1, 2)).last_hidden_state.mean(dim=1).numpy()
    found = VideoFeatures(videomae_folder, batch_size=2)(videos)
    assert found.shape == (5, 32)
    assert found.dtype == np.float64
    assert_allclose(found, expected, atol=1e-5)


def test_bare_encoder_and_half_precision_give_the_same_features(
    videomae_folder: Path, tmp_path: Path, noise_videos: Clips
) -> None:
    videos = noise_videos(3, seed=1)
    classifier = VideoMAEForVideoClassification.from_pretrained(videomae_folder)
    half = classifier.half()
    half.save_pretrained(tmp_path / "half")
    half.videomae.save_pretrained(tmp_path / "encoder")
    one, other = VideoFeatures(tmp_path / "half"), VideoFeatures(tmp_path / "encoder")
    assert isinstance(one.network, VideoMAEModel)
    assert {p.dtype for p in one.network.parameters()} == {torch.float32}
    assert_allclose(one(videos), other(videos), atol=1e-6)
    assert_allclose(one(videos), VideoFeatures(videomae_folder)(videos), atol=0.05)


def test_a_network_saved_with_its_pretraining_decoder_is_read(tmp_path: Path, noise_videos: Clips) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    small |= {f"decoder_{name}": value for name, value in small.items()}
    torch.manual_seed(0)
    network = VideoMAEForPreTraining(
        VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, **small)
    ).eval()
    network.save_pretrained(tmp_path)
    videos = noise_videos(2, seed=5, frames=4, side=16)
    with torch.no_grad():
        expected = network.videomae(videos.transpose(1, 2)).last_hidden_state.mean(dim=1).numpy()
    assert_allclose(VideoFeatures(tmp_path)(videos), expected, atol=1e-5)


def test_frames_are_picked_evenly_and_rounded() -> None:
    assert frame_index(8, 8) == list(range(8))
    assert frame_index(16, 8) == [0, 2, 4, 6, 9, 11, 13, 15]
    assert frame_index(4, 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert frame_index(1, 3) == [0, 0, 0]
    assert frame_index(9, 1) == [4]


def test_any_length_and_size_is_brought_to_the_networks(videomae_folder: Path, noise_videos: Clips) -> None:
    features = VideoFeatures(videomae_folder)
    videos = noise_videos(2, seed=2)
    longer = videos.repeat_interleave(2, dim=2)  # every frame twice, picked once each
    larger = videos.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    assert_allclose(features(longer), features(videos), atol=1e-5)
    scale = np.abs(features(videos)).mean()
    # Not equal: the antialiasing filter is wider than the 2x2 blocks it averages.
    assert np.abs(features(larger) - features(videos)).mean() < 0.35 * scale
    wide = torch.zeros(1, 3, 5, 48, 96)
    assert features(wide).shape == (1, 32)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_shrinking_averages_fine_detail_instead_of_sampling_it(mode: str) -> None:
    """A checkerboard of single pixels at a third of its size is grey; picking every third pixel keeps it."""
    number = torch.arange(96)
    board = ((number[:, None] + number) % 2 * 2.0 - 1.0).expand(1, 3, 96, 96)
    shrunk = resize(board, (32, 32), mode)
    assert shrunk[..., 4:-4, 4:-4].abs().max() < 0.1


def test_normalisation_is_the_folders(videomae_folder: Path, tmp_path: Path, noise_videos: Clips) -> None:
    folder = tmp_path / "net"
    shutil.copytree(videomae_folder, folder)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    videos = noise_videos(2, seed=3)
    by_hand = ((videos + 1) / 2 - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)
    network = VideoMAEModel.from_pretrained(videomae_folder).eval()
    with torch.no_grad():
        expected = network(by_hand.transpose(1, 2)).last_hidden_state.mean(dim=1).numpy()
    assert_allclose(VideoFeatures(folder)(videos), expected, atol=1e-5)


def test_fvd_sees_damage_and_grows_with_it(videomae_folder: Path, sliding_video: Clips) -> None:
    features = VideoFeatures(videomae_folder)

    def film(seed: int) -> Tensor:
        return sliding_video(1.0, 0.0, frames=8, side=32, seed=seed)

    real = features.collect(film(seed)[0] for seed in range(40))
    clean = torch.cat([film(seed) for seed in range(100, 140)])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    distances = [fvd(features(clean + level * noise), real) for level in (0.0, 0.2, 0.6)]
    assert distances[0] < distances[1] < distances[2]
    assert fvd(real, real) < 1e-3 * distances[0]


def test_collect_takes_clips_and_batches(videomae_folder: Path, noise_videos: Clips) -> None:
    features = VideoFeatures(videomae_folder, batch_size=4)
    videos = noise_videos(7, seed=4)
    assert_allclose(features.collect(iter(videos)), features(videos), atol=1e-5)
    assert_allclose(features.collect([videos[:3], videos[3], videos[4:]]), features(videos), atol=1e-5)


def test_protocol_names_the_weights(videomae_folder: Path, tmp_path: Path) -> None:
    protocol = VideoFeatures(videomae_folder).protocol()
    assert (protocol["network"], protocol["frames"], protocol["size"]) == ("videomae", 8, [32, 32])
    json.dumps(protocol)
    network = VideoMAEForVideoClassification.from_pretrained(videomae_folder)
    network.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        network.videomae.encoder.layer[0].output.dense.bias[0] += 1.0  # type: ignore[index]
    network.save_pretrained(tmp_path / "other")
    assert VideoFeatures(tmp_path / "same").protocol()["weights_sha256"] == protocol["weights_sha256"]
    assert VideoFeatures(tmp_path / "other").protocol()["weights_sha256"] != protocol["weights_sha256"]


def test_wrong_folders_are_named(
    videomae_folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no such folder"):
        VideoFeatures(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        VideoFeatures(tmp_path)
    with pytest.raises(UserError, match="type 'clip'"):
        VideoFeatures(clip_folder)
    folder = tmp_path / "net"
    folder.mkdir()
    shutil.copy(videomae_folder / "config.json", folder)
    with pytest.raises(UserError, match="safetensors"):
        VideoFeatures(folder)
    (folder / "config.json").write_text("{broken")
    with pytest.raises(UserError, match="cannot read"):
        VideoFeatures(folder)

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no connection\nand a long explanation")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=r"from the Hugging Face hub \(no connection\); on a machine with network run"):
        VideoFeatures("MCG-NJU/videomae-base")


def test_missing_weights_are_an_error_not_random_numbers(videomae_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "net"
    shutil.copytree(videomae_folder, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if "intermediate.dense.weight" in key)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weight"):
        VideoFeatures(folder)
