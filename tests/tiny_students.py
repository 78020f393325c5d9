"""Students of the tiny teachers with weights drawn at random, and those teachers as diffusers' pipelines want them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from tiny import tiny_animatediff, tiny_modelscope
from tiny_transformers import tiny_cogvideox, tiny_wan

from mcm.card import Provenance, StudentCard, Teacher, Weights
from mcm.generate import Maker
from mcm.models.fingerprint import fingerprint
from mcm.models.student import Student
from mcm.models.video import load_video_model

OUTSIDE = Path(__file__).parent / "outside.py"
PROMPT, SEED, FRAMES, SIZE = "a red puppet walks", 3, 4, (16, 16)


def whole_teacher(folder: Path, family: str, layout: str = "motion") -> Path:
    """The tiny teacher with a whole model_index.json, so that diffusers' own pipelines load it."""
    parts: dict[str, Any]
    if family == "wan":
        tiny_wan(folder, experts=0.7 if layout == "experts" else None)
        parts = {
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "transformer_2": ["diffusers", "WanTransformer3DModel"] if layout == "experts" else [None, None],
        }
    elif family == "cogvideox":
        tiny_cogvideox(folder, max_text_seq_length=226)  # as the pipeline reads
        parts = {"transformer": ["diffusers", "CogVideoXTransformer3DModel"]}
    elif family == "modelscope":
        tiny_modelscope(folder)
        parts = {"unet": ["diffusers", "UNet3DConditionModel"]}
    else:
        tiny_animatediff(folder, layout)
        parts = {
            "unet": ["diffusers", "UNetMotionModel" if layout == "motion" else "UNet2DConditionModel"],
            "motion_adapter": [None, None] if layout == "motion" else ["diffusers", "MotionAdapter"],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
        }
    path = folder / "model_index.json"
    vae, text, words, scheduler = {
        "cogvideox": ("AutoencoderKLCogVideoX", "T5EncoderModel", "T5Tokenizer", "CogVideoXDDIMScheduler"),
        "wan": ("AutoencoderKLWan", "UMT5EncoderModel", "T5Tokenizer", "FlowMatchEulerDiscreteScheduler"),
    }.get(family, ("AutoencoderKL", "CLIPTextModel", "CLIPTokenizer", "DDIMScheduler"))
    parts |= {
        "vae": ["diffusers", vae],
        "text_encoder": ["transformers", text],
        "tokenizer": ["transformers", words],
        "scheduler": ["diffusers", scheduler],
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), "_diffusers_version": diffusers.__version__, **parts}))
    return folder


@torch.no_grad()
def stirred(student: Student, scale: float = 0.15) -> Student:
    """Weights drawn at random: adapters from nothing, a whole network's a little changed."""
    rng = torch.Generator().manual_seed(11)
    for name, weight in sorted(student.trainable().items()):
        noise = torch.randn(weight.shape, generator=rng)
        weight.copy_(scale * noise if "lora_" in name else weight + scale / 10 * noise)
    return student


def tiny_student(folder: Path, teacher: Path, kind: str = "lora", targets: str = "all", **changed: Any) -> Path:
    """A student in `folder`, with its card; `changed`: of the card. Adapters of rank 3 and alpha 6."""
    model = load_video_model(teacher)
    mark = fingerprint(model.denoiser.network)
    lora = kind == "lora"
    student = Student.lora(model.denoiser, 3, 6.0, targets) if lora else Student.full(model.denoiser)
    stirred(student).save(folder)
    facts: dict[str, Any] = {
        "name": folder.name,
        "teacher": Teacher(name=str(teacher), fingerprint=mark),
        "family": model.family,
        "method": "mcm",
        "scheduler": model.scheduler_config,
        "sampler": {"name": "consistency", "original_steps": 50},
        "timestep_scaling": 4.0,
        "frames": FRAMES,
        "size": SIZE,
        "fps": 8.0,
        "weights": Weights(
            kind="lora" if lora else "full",
            file="adapter_model.safetensors" if lora else "diffusion_pytorch_model.safetensors",
            rank=3 if lora else None,
            alpha=6.0 if lora else None,
        ),
        "provenance": Provenance(recipe={}, versions={}, date="2026-01-01T00:00:00+00:00", updates=1, seed=0),
    }
    StudentCard(**{**facts, **changed}).save(folder)
    return folder


def shown(maker: Maker, steps: int, prompt: str = PROMPT, seed: int = SEED) -> np.ndarray:
    """What mcm makes, (T, H, W, 3) in [0, 1], not rounded to bytes."""
    video = maker.decode(maker.latents([prompt], [seed], steps))
    return video[0].permute(1, 2, 3, 0).add(1).div(2).numpy()


def outside(jobs: dict[str, dict[str, Any]], folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Videos of exports, made by a program without mcm, by the jobs' names; see outside.py."""
    usual = {"prompt": PROMPT, "seed": SEED, "steps": [1, 4]}
    usual |= {"frames": FRAMES, "shape": [4, FRAMES, 8, 8], "size": SIZE}
    told = [{**usual, **job, "out": str(folder / f"{name}.npz")} for name, job in jobs.items()]
    (folder / "jobs.json").write_text(json.dumps(told))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(OUTSIDE), str(folder / "jobs.json")],
        capture_output=True, text=True, timeout=240, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: dict(np.load(folder / f"{name}.npz")) for name in jobs}
