"""CLIPSIM and image features of a CLIP folder against transformers called directly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from mcm.errors import UserError
from mcm.evaluation.clipsim import CLIP_MEAN, ClipScorer, clip_similarity

Clips = Callable[..., Tensor]
PROMPTS = ["a red puppet waves", "a bird", "the long road goes on"]


def by_hand(folder: Path, videos: Tensor, prompts: list[str]) -> np.ndarray:
    """One frame and one prompt at a time, through the model's own logits."""
    network, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    std = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    scores = []
    for video, prompt in zip(videos, prompts, strict=True):
        frames = ((video.transpose(0, 1) + 1) / 2 - mean) / std
        with torch.no_grad():
            out = network(pixel_values=frames, **tokenizer([prompt], return_tensors="pt"))
        scores.append((100 * out.logits_per_image / network.logit_scale.exp()).mean().item())
    return np.array(scores)


def test_similarity_is_the_mean_cosine_of_the_frames(clip_folder: Path, noise_videos: Clips) -> None:
    videos = noise_videos(3, seed=0, frames=4)
    found = ClipScorer(clip_folder, batch_size=5).similarity(videos, PROMPTS)
    assert found.shape == (3,)
    assert found.dtype == np.float64
    assert_allclose(found, by_hand(clip_folder, videos, PROMPTS), atol=1e-3)
    assert np.ptp(found) > 0.1  # a tokenizer that read nothing would make the prompts equal


def test_score_of_a_prompt_does_not_depend_on_its_batch(clip_folder: Path) -> None:
    scorer = ClipScorer(clip_folder)
    together = scorer.text_features(PROMPTS)
    alone = torch.cat([scorer.text_features([prompt]) for prompt in PROMPTS])
    assert_allclose(together.numpy(), alone.numpy(), atol=1e-5)


def test_long_prompts_are_cut_to_what_the_network_reads(clip_folder: Path) -> None:
    scorer = ClipScorer(clip_folder)
    assert scorer.text_features(["walk " * 200]).shape == (1, 16)


def test_cosine_of_known_vectors() -> None:
    images = torch.tensor([[[1.0, 0.0], [0.0, 5.0]], [[-3.0, 0.0], [-1.0, 0.0]]])
    texts = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    assert_allclose(clip_similarity(images, texts), [50.0, -100.0])


def test_frames_are_cropped_to_their_centre(clip_folder: Path, noise_videos: Clips) -> None:
    scorer = ClipScorer(clip_folder)
    square = noise_videos(1, seed=1, frames=2)[0].transpose(0, 1)
    wide = torch.cat([torch.ones(2, 3, 32, 9), square, -torch.ones(2, 3, 32, 9)], dim=-1)
    assert_allclose(scorer.frame_features(wide).numpy(), scorer.frame_features(square).numpy(), atol=1e-5)
    for height, width in ((45, 33), (20, 31), (33, 64)):  # sizes whose scaling rounds
        assert scorer.frame_features(torch.zeros(1, 3, height, width)).shape == (1, 16)


def test_smooth_pictures_look_the_same_at_any_size(clip_folder: Path, sliding_video: Clips) -> None:
    scorer = ClipScorer(clip_folder)
    large = torch.nn.functional.avg_pool2d(sliding_video(0.0, 0.0, frames=1, side=160)[0, :, 0], 5)[None]
    enlarged = torch.nn.functional.interpolate(large, scale_factor=4, mode="bicubic").clamp(-1, 1)
    a, b = scorer.frame_features(large), scorer.frame_features(enlarged)
    assert torch.cosine_similarity(a, b).item() > 0.99


def test_without_a_preprocessor_config_clips_own_constants_serve(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "preprocessor_config.json").unlink()
    assert ClipScorer(folder).protocol()["mean"] == list(CLIP_MEAN)
    assert ClipScorer(clip_folder).protocol()["mean"] == [0.4, 0.5, 0.6]


def test_bad_folders_and_inputs_are_named(
    clip_folder: Path, videomae_folder: Path, tmp_path: Path, noise_videos: Clips
) -> None:
    with pytest.raises(UserError, match="type 'videomae'"):
        ClipScorer(videomae_folder)
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="no tokenizer"):
        ClipScorer(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5, 0.5, 0.5]}')
    shutil.copy(clip_folder / "tokenizer.json", folder)
    with pytest.raises(UserError, match="three numbers"):
        ClipScorer(folder)
    scorer = ClipScorer(clip_folder)
    with pytest.raises(UserError, match="3 videos and 2 prompts"):
        scorer.similarity(noise_videos(3, seed=0, frames=2), PROMPTS[:2])
    with pytest.raises(UserError, match="shape"):
        scorer.frame_features(torch.zeros(3, 32, 32))
