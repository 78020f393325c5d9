"""The authors' released weights: made here in their exact layout, on tiny teachers, beside peft and diffusers alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import outside
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler
from diffusers.schedulers import scheduling_lcm
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from tiny import BETAS
from tiny_students import FRAMES, PROMPT, SEED, SIZE, whole_teacher

import mcm
from mcm.errors import UserError
from mcm.generate import Maker, load_maker
from mcm.models.student import Student

# What the authors' training script gives adapters to, and what their demo changes in AnimateDiff's scheduler.
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
DEMO = {
    "clip_sample": False, "timestep_spacing": "linspace", "beta_schedule": "linear", "beta_start": 0.00085,
    "beta_end": 0.012, "steps_offset": 1,
}  # fmt: skip
NETWORKS = {"modelscopet2v-laion": "UNet3DConditionModel", "animatediff-webvid": "UNetMotionModel"}
TEACHERS = {"modelscopet2v-laion": "modelscope", "animatediff-webvid": "animatediff"}
NAMES = list(NETWORKS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teachers/ of both families, whose betas are not AnimateDiff's, and mcm/, as the authors' repository is."""
    root = tmp_path_factory.mktemp("official")
    for family in ("modelscope", "animatediff"):
        teacher = whole_teacher(root / "teachers" / family, family)
        DDIMScheduler(**{**BETAS, "beta_schedule": "scaled_linear"}).save_pretrained(teacher / "scheduler")
    for name in NAMES:
        teacher = root / "teachers" / TEACHERS[name]
        release(root / "mcm" / name, NETWORKS[name], teacher)
    return root


def release(folder: Path, kind: str, teacher: Path) -> None:
    """Weights as the authors' script wrote them, by peft; adapter_config.json with the keys of its time."""
    network = getattr(diffusers, kind).from_pretrained(teacher / "unet")
    layers = [name for name, _ in network.named_modules() if name.endswith(TARGETS)]
    if kind == "UNet3DConditionModel":
        layers = [name for name in layers if not ("temp" in name and "conv" in name)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        adapted: Any = get_peft_model(network, LoraConfig(r=4, lora_alpha=4, target_modules=layers, lora_dropout=0.0))
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.15)
    adapted.save_pretrained(folder)
    diffusers.StableDiffusionPipeline.save_lora_weights(folder / "unet_lora", get_peft_model_state_dict(adapted))
    config = {
        "alpha_pattern": {}, "auto_mapping": {"base_model_class": kind, "parent_library": "diffusers.models"},
        "base_model_name_or_path": str(teacher), "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
        "lora_alpha": 4, "lora_dropout": 0.0, "megatron_config": None, "megatron_core": "megatron.core",
        "modules_to_save": None, "peft_type": "LORA", "r": 4, "rank_pattern": {}, "revision": None,
        "target_modules": layers, "task_type": None, "use_rslora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def renamed(place: Path, folder: Path, name: str, **changed: Any) -> Path:
    """A copy of released weights in `folder` whose adapter_config.json says something else."""
    shutil.copytree(place / "mcm" / name, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return folder


def video(maker: Maker, steps: int) -> np.ndarray:
    """(T, H, W, 3) in [0, 1]."""
    made = maker.decode(maker.latents([PROMPT], [SEED], steps, frames=FRAMES, size=SIZE))
    return made[0].permute(1, 2, 3, 0).add(1).div(2).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_the_released_one(name: str, place: Path) -> None:
    folder = place / "mcm" / name
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.suffix != ".md"}
    assert files == {
        "adapter_config.json", "adapter_model.safetensors", "unet_lora/pytorch_lora_weights.safetensors",
    }  # fmt: skip
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())
    layer = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"} <= keys
    over_time = "motion_modules.0.proj_in" if name.startswith("animatediff") else "temp_attentions.0.proj_in"
    assert f"base_model.model.down_blocks.0.{over_time}.lora_A.weight" in keys
    assert not any("temp_convs" in key for key in keys)


@pytest.mark.parametrize("name", NAMES)
def test_the_frames_of_the_authors_demo(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their demo's lines, with diffusers and peft as they are: adapters by peft, LCMScheduler by its arguments."""
    teacher = place / "teachers" / TEACHERS[name]
    pipeline: Any = DiffusionPipeline.from_pretrained(teacher)
    pipeline.set_progress_bar_config(disable=True)
    changed = DEMO if name.startswith("animatediff") else {}
    pipeline.scheduler = LCMScheduler.from_pretrained(teacher, subfolder="scheduler", timestep_scaling=4.0, **changed)
    adapted = PeftModel.from_pretrained(pipeline.unet, place / "mcm", subfolder=name, adapter_name="pretrained_lora")
    pipeline.unet = adapted.merge_and_unload()
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", scheduling_lcm.randn_tensor)  # put back afterwards
    job = {"prompt": PROMPT, "seed": SEED, "frames": FRAMES, "shape": [4, FRAMES, 8, 8], "size": SIZE}
    maker = load_maker(f"{place / 'mcm'}:{name}")
    bare = load_maker(teacher)
    for steps in (1, 2, 4):
        found, wanted = video(maker, steps), outside.make(pipeline, job, steps)
        assert float(np.abs(found - wanted).max()) <= 1e-4
        assert ((wanted > 0.01) & (wanted < 0.99)).mean() > 0.5
    maker.model.path = maker.model.denoiser.path = bare.model.path  # on the teacher's betas
    if name.startswith("animatediff"):
        assert float(np.abs(video(maker, 4) - wanted).max()) > 1e-2  # they matter


def test_the_card_says_how_they_are_sampled(place: Path) -> None:
    maker = load_maker(place / "mcm" / "modelscopet2v-laion")
    card = maker.card
    assert card is not None
    assert (card.timestep_scaling, card.guidance_scale, card.sampler["name"]) == (4.0, 1.0, "consistency")
    assert (card.weights.rank, card.weights.alpha, card.frames, card.family) == (4, 4, 16, "modelscope")
    assert card.scheduler["beta_schedule"] == "scaled_linear"  # ModelScope's own
    times = {steps: maker.sampler().times(maker.model.path, steps)[:-1].tolist() for steps in (1, 2, 4, 8)}
    assert times == {
        1: [999], 2: [999, 499], 4: [999, 759, 499, 259], 8: [999, 879, 759, 639, 499, 379, 259, 139],
    }  # fmt: skip
    (made,) = mcm.generate(maker, PROMPT, frames=2)
    assert made.settings["sampler"] == "consistency"
    assert made.frames.shape == (2, 16, 16, 3)


def test_adapters_off_is_the_teacher(place: Path) -> None:
    teacher, bare = (load_maker(place / "teachers" / "animatediff") for _ in range(2))
    student = Student.load(teacher.model.denoiser, place / "mcm" / NAMES[1])  # not merged, as a maker's is
    z = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    t, text = torch.tensor([499]), bare.model.text([PROMPT])
    with torch.no_grad():
        assert torch.equal(student.teacher(z, t, text).eps, bare.model.denoiser(z, t, text).eps)
        assert not torch.allclose(student(z, t, text).eps, bare.model.denoiser(z, t, text).eps, atol=1e-2)


def test_they_can_be_exported(place: Path, tmp_path: Path) -> None:
    source = f"{place / 'mcm'}:{NAMES[0]}"
    folder = mcm.export(source, "peft", tmp_path / "out")
    assert np.array_equal(video(load_maker(folder), 2), video(load_maker(source), 2))


# Where they come from -------------------------------------------------------------------------------------------------


def test_from_the_hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, allow_patterns: list[str], **_: Any) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(place / "mcm")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    maker = load_maker("yhzhai/mcm:modelscopet2v-laion")
    assert maker.name == "yhzhai/mcm:modelscopet2v-laion"
    assert asked["name"] == "yhzhai/mcm"
    assert not [p for p in asked["patterns"] if "/" in p and not p.startswith("modelscopet2v-laion/")]
    assert np.array_equal(video(maker, 1), video(load_maker(place / "mcm" / "modelscopet2v-laion"), 1))


def test_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    wanted = re.escape("run `hf download yhzhai/mcm --include 'modelscopet2v-anime/*' --local-dir weights`")
    with pytest.raises(UserError, match=f"yhzhai/mcm:modelscopet2v-anime.*{wanted}.*give weights/modelscopet2v-anime"):
        load_maker("yhzhai/mcm:modelscopet2v-anime")
    with pytest.raises(UserError, match=r"modelscopet2v-anime/ of .*adapter_model\.safetensors, is not to be had"):
        load_maker(f"{tmp_path}:modelscopet2v-anime")
    for name in ("yhzhai/mcm:../secret", "yhzhai/mcm:"):  # no such sources: names of teachers that do not exist
        with pytest.raises(UserError, match="no such folder"):
            load_maker(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_usual_place_of_the_teacher(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where adapter_config.json names none that is here; the folder's name tells the family where peft did not."""
    nameless: dict[str, Any] = {"base_model_name_or_path": "/data/authors/model", "auto_mapping": None}
    folder = renamed(place, tmp_path / name, name, **nameless)

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    getting = {
        "modelscopet2v-laion": "hf download ali-vilab/text-to-video-ms-1.7b --local-dir teachers/modelscope",
        "animatediff-webvid": "guoyww/animatediff-motion-adapter-v1-5-2 .*save_pretrained it to teachers/animatediff",
    }
    with pytest.raises(UserError, match=rf"its teacher cannot be loaded.*{getting[name]}.*base_model_name_or_path of"):
        load_maker(folder)
    shutil.copytree(place / "teachers" / TEACHERS[name], tmp_path / "teachers" / TEACHERS[name])
    assert np.array_equal(video(load_maker(folder), 1), video(load_maker(place / "mcm" / name), 1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"auto_mapping": None}, r"does not tell of which network.*UNet3DConditionModel or UNetMotionModel"),
        ({"auto_mapping": {"base_model_class": "UNet2DConditionModel"}}, r"base_model_class is 'UNet2DConditionModel'"),
        ({"auto_mapping": {"base_model_class": "UNetMotionModel"}}, r"for a UNetMotionModel;.*UNet3DConditionModel"),
        ({"r": None}, r"has r None and lora_alpha 4"),
        ({"r": 8}, r"has shape \(4, .*expected \(8, "),
        ({"peft_type": "LOHA"}, r"peft_type is 'LOHA'; expected 'LORA'"),
    ],
)
def test_other_adapters(changed: dict[str, Any], message: str, place: Path, tmp_path: Path) -> None:
    folder = renamed(place, tmp_path / "adapters", "modelscopet2v-laion", **changed)
    with pytest.raises(UserError, match=message):
        load_maker(folder)
