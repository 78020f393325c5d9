"""BASE+ADAPTER: the pipeline that diffusers puts together of the two, with the adapter's betas."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_animatediff, tiny_modelscope

from mcm.diffusion import path_from_config
from mcm.errors import UserError
from mcm.models import joined as module
from mcm.models.joined import joined
from mcm.models.video import load_video_model
from mcm.planning.networks import local

PROMPT = "a red puppet walks"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, a Stable Diffusion pipeline with its own betas; adapter/, a motion adapter; whole/, both in one folder."""
    place = tmp_path_factory.mktemp("joined")
    whole = tiny_animatediff(place / "whole", "adapter")
    base = Path(shutil.copytree(whole, place / "base"))
    shutil.move(base / "motion_adapter", place / "adapter")
    (base / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    path = base / "scheduler" / "scheduler_config.json"
    stated = json.loads(path.read_text()) | {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"}
    path.write_text(json.dumps(stated))
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mcm" / "teachers"


def named(place: Path) -> str:
    return f"{place / 'base'}+{place / 'adapter'}"


@torch.no_grad()
def test_it_is_the_teacher_that_one_folder_of_both_is(place: Path) -> None:
    model, whole = load_video_model(named(place)), load_video_model(place / "whole")
    assert (model.name, model.family) == (named(place), "animatediff")
    z = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t, text = torch.tensor([600]), whole.text([PROMPT])
    torch.testing.assert_close(model.denoiser(z, t, text).eps, whole.denoiser(z, t, text).eps)
    assert model.scheduler_config["beta_schedule"] == "linear"  # the adapter's, not the base's
    wanted = path_from_config({"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012})
    torch.testing.assert_close(model.path.alpha(torch.arange(1000)), wanted.alpha(torch.arange(1000)))


def test_diffusers_loads_the_folder_and_makes_the_same_frames(place: Path) -> None:
    """By DPM++: diffusers' DDIM steps past the next of evenly spread times."""
    from diffusers import AnimateDiffPipeline, DPMSolverMultistepScheduler

    from mcm.models.guidance import guided
    from mcm.samplers import sample, sampler

    model = load_video_model(named(place))
    made: Any = AnimateDiffPipeline.from_pretrained(model.folder)
    made.set_progress_bar_config(disable=True)
    made.scheduler = DPMSolverMultistepScheduler.from_config(made.scheduler.config)
    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = made(
        prompt=PROMPT, num_frames=4, height=16, width=16, num_inference_steps=4, guidance_scale=7.5,
        latents=noise.clone(), output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    text, empty = model.text([PROMPT]), model.text([""])
    with torch.no_grad():
        ours = sample(
            lambda z, t: guided(model.denoiser, z, t, text, empty, 7.5), model.path,
            sampler("dpm++").from_config(made.scheduler.config), noise, 4, torch.Generator(),
        )  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_folder_is_made_once_and_again_for_others(place: Path, cache: Path, tmp_path: Path) -> None:
    first = joined(named(place))
    assert first is not None
    assert list(cache.iterdir()) == [first]
    assert first == joined(f"{place / 'base'} + {place / 'adapter'}")
    assert (first / "unet").is_symlink()
    other = Path(shutil.copytree(place / "base", tmp_path / "other"))
    assert joined(f"{other}+{place / 'adapter'}") != first
    assert joined(f"{place / 'base'}+{place / 'whole'}") not in (None, first)  # the adapter inside a pipeline
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_what_is_no_such_name(place: Path, tmp_path: Path) -> None:
    assert joined("owner/model") is None
    (tmp_path / "a+b").mkdir()
    assert joined(tmp_path / "a+b") is None  # a folder that is called so


def test_each_is_looked_for_and_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def offline(name: str, **settings: Any) -> str:
        asked.append((name, settings["allow_patterns"]))
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"base model owner/sd: .*`hf download owner/sd`, copy the folder here"):
        joined(f"owner/sd+{place / 'adapter'}")
    with pytest.raises(UserError, match=r"motion adapter owner/adapter: .*`hf download owner/adapter`"):
        load_video_model(f"{place / 'base'}+owner/adapter")
    assert "unet/*.safetensors" in asked[0][1]
    assert not [pattern for pattern in asked[0][1] if pattern.startswith("safety_checker")]
    assert "*.safetensors" in asked[1][1]


@pytest.mark.parametrize(
    ("base", "adapter", "words"),
    [
        ("modelscope", "adapter", r"unet/ is a UNet3DConditionModel; expected a Stable Diffusion pipeline"),
        ("base", "base", r"config\.json is missing"),
        ("base", "base/unet", r"is a UNet2DConditionModel; expected diffusers' MotionAdapter"),
        ("base", "nowhere", r"motion adapter .*nowhere: no such folder"),
    ],
)
def test_what_is_something_else(base: str, adapter: str, words: str, place: Path, tmp_path: Path) -> None:
    tiny_modelscope(tmp_path / "modelscope")
    first = tmp_path / base if base == "modelscope" else place / base
    with pytest.raises(UserError, match=words):
        joined(f"{first}+{place / adapter}")


@pytest.mark.parametrize("name", ["a+", "+b", "a+b+c"])
def test_half_a_name(name: str) -> None:
    with pytest.raises(UserError, match=r"expected BASE\+ADAPTER"):
        joined(name)


def test_a_cache_that_cannot_be_written(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="file"):
        joined(named(place))


def test_another_process_may_be_faster(place: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = joined(named(place))
    assert first is not None
    kept, replace = first.with_name("kept"), os.replace
    first.rename(kept)

    def late(source: Path, target: Path) -> None:
        if Path(target) == first:  # the moment before, the other one's folder is there
            kept.rename(first)
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", late)
    assert joined(named(place)) == first
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_a_plan_reads_it_without_weights(place: Path) -> None:
    assert joined(named(place), lambda name, what, parts: local(name, what)) is not None
    with pytest.raises(UserError, match=r"base model owner/sd: not in Hugging Face's cache.*configuration is enough"):
        joined("owner/sd+owner/adapter", lambda name, what, parts: local(name, what))
