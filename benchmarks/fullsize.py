"""One whole MCM step of full-size teachers with random weights on the CPU, beside what `mcm plan` says of it.

LoRA students, a discriminator on a backbone of DINOv2-small's size, the code of a run's training step, in the middle of
a run: the optimizers have their states already. Each row is a process of its own, whose C library gives freed memory
back at once (else it keeps up to as much again, and a peak says little of what was needed); rows that are there already
are not made again. `make fullsize` runs it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tiny import tiny_tokenizer
from torch import nn

from mcm.evaluation.report import provenance
from mcm.output import write_json

RESULTS = Path(__file__).with_name("fullsize.json")
FREE = 1.1  # a row is made where so many times its planned bytes are free
# glibc otherwise learns to keep blocks of up to 32 MB in its heap, where they stay when they are freed.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
# (teacher, side in pixels, frames, gradient checkpointing), smallest first.
ROWS = [
    ("modelscope", 64, 8, False), ("animatediff", 64, 8, True), ("modelscope", 128, 8, False),
    ("modelscope", 128, 8, True), ("animatediff", 128, 8, True), ("modelscope", 128, 16, False),
    ("modelscope", 128, 16, True), ("animatediff", 128, 16, True), ("animatediff", 256, 16, True),
    ("modelscope", 256, 16, True), ("animatediff", 512, 16, True),
]  # fmt: skip


def write_configs(kind: str, folder: Path) -> None:
    """A pipeline folder without weights: the published architecture as diffusers' configurations describe it."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel, UNetMotionModel
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        if kind == "modelscope":  # ali-vilab/text-to-video-ms-1.7b; text: OpenCLIP ViT-H/14's tower
            network: Any = UNet3DConditionModel(sample_size=32, cross_attention_dim=1024, attention_head_dim=64)
            width, layers, heads, pipeline = 1024, 23, 16, "TextToVideoSDPipeline"
        else:  # Stable Diffusion 1.5 with guoyww/animatediff-motion-adapter-v1-5-2; text: CLIP ViT-L/14's tower
            network = UNetMotionModel(
                sample_size=64, cross_attention_dim=768, num_attention_heads=8, motion_max_seq_length=32
            )
            width, layers, heads, pipeline = 768, 12, 12, "AnimateDiffPipeline"
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), latent_channels=4, layers_per_block=2, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    network.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    CLIPTextConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
    ).save_pretrained(folder / "text_encoder")
    tiny_tokenizer(folder / "tokenizer")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear").save_config(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))


def write_backbone(folder: Path) -> None:
    """A random network of DINOv2-small's size (facebook/dinov2-small)."""
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 224, "width": 224}}))


def recipe_of(teacher: str, side: int, frames: int, checkpointing: bool, root: Path) -> Any:
    from mcm.recipe import Recipe

    return Recipe.model_validate({
        "teacher": str(root / teacher), "data": {"videos": "clips", "frames": frames, "size": (side, side)},
        "discriminator": {"backbone": str(root / "backbone")},
        "training": {"batch": 1, "gradient_checkpointing": checkpointing},
    })  # fmt: skip


def with_weights(*networks: nn.Module) -> None:
    """Networks of shapes get memory, small random weights and tables of zeros, in place."""
    rng = torch.Generator().manual_seed(0)
    for network in networks:
        network.to_empty(device="cpu")
        for weight in network.parameters():
            weight.data.normal_(0, 0.02, generator=rng)
        for table in network.buffers():
            table.zero_()


def step_of_nothing(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's states as after a step, made of gradients that are zero."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def one_row(teacher: str, side: int, frames: int, checkpointing: bool, root: Path) -> dict[str, Any]:
    """Plan a step, then make it: the real turns, backward passes and optimizers."""
    from mcm.methods.base import Batch
    from mcm.models.text import TextEmbedding
    from mcm.models.video import load_video_model
    from mcm.planning import plan
    from mcm.training.optimizers import clip
    from mcm.training.players import make_optimizers, make_players

    recipe = recipe_of(teacher, side, frames, checkpointing, root)
    planned = plan(recipe).memory
    needed, free = planned["peak"], psutil.virtual_memory().available
    if needed * FREE > free:
        return {"left_out": f"planned {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB free"}
    gc.collect()
    baseline = psutil.Process().memory_info().rss  # after the imports and the plan
    with torch.device("meta"):
        model = load_video_model(recipe.teacher, "meta")
    with_weights(model.denoiser, model.codec, model.text)
    method = recipe.method.build()
    players = make_players(recipe, model, method, None)
    optimizers, _ = make_optimizers(recipe, method, players, sharded=False)
    rng = torch.Generator().manual_seed(0)
    length, width = model.text.length, model.text.width
    text, empty = (TextEmbedding(torch.randn(1, length, width), torch.randn(1, width)) for _ in range(2))
    picked = method.frames_picked
    batch = Batch(
        torch.randn(1, *model.latent_shape(frames, (side, side))), text, empty, torch.randn(picked, 3, side, side),
        torch.randn(picked, width), progress=method.heaviest,
    )  # fmt: skip
    for optimizer in optimizers.values():
        step_of_nothing(optimizer)
    began = time.monotonic()
    for turn in method.turns(players, batch, rng):
        torch.stack(list(turn.losses.values())).sum().backward()
    for player, optimizer in optimizers.items():
        norm = clip(list(players.parameters(player).values()), recipe.optim.clip)
        assert norm > 0
        optimizer.step()
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - baseline
    weights = sum(
        t.numel() * t.element_size()
        for m in (*players.student.denoisers(), model.codec, model.text, players.motion, players.discriminator)
        if m is not None
        for t in (*m.parameters(), *m.buffers())
    )
    return {
        "peak_bytes": peak, "planned_peak_bytes": needed, "seconds": round(seconds, 1), "weight_bytes": weights,
        "planned_weight_bytes": planned["weights"], "checkpointing": recipe.training.gradient_checkpointing,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/fullsize"), help="folder of configurations")
    parser.add_argument("--row", nargs=3, help="teacher, side and frames: this row alone, its JSON to stdout")
    parser.add_argument("--no-checkpointing", action="store_true", help="with --row: keep all activations")
    parser.add_argument("--minutes", type=float, default=20, help="a row that takes longer is given up")
    args = parser.parse_args()
    if args.row:
        teacher, side, frames = args.row[0], int(args.row[1]), int(args.row[2])
        print(json.dumps(one_row(teacher, side, frames, not args.no_checkpointing, args.work)))
        return
    for kind in ("modelscope", "animatediff"):
        write_configs(kind, args.work / kind)
    write_backbone(args.work / "backbone")
    told: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": []}
    done = {(row["teacher"], row["size"][0], row["frames"], row["checkpointing"]) for row in told["rows"]}
    for teacher, side, frames, checkpointing in ROWS:
        if (teacher, side, frames, checkpointing) in done:
            continue
        line = [sys.executable, __file__, "--work", str(args.work), "--row", teacher, str(side), str(frames)]
        line += [] if checkpointing else ["--no-checkpointing"]
        try:
            made = subprocess.run(
                line, stdout=subprocess.PIPE, text=True, timeout=60 * args.minutes, check=True,
                env={**os.environ, **GIVE_BACK},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"{teacher} {side}x{side}x{frames}: more than {args.minutes:g} minutes, given up", flush=True)
            continue
        row = {"teacher": teacher, "size": [side, side], "frames": frames, **json.loads(made.stdout.splitlines()[-1])}
        print(json.dumps(row), flush=True)
        if "left_out" in row:
            continue
        told["rows"].append(row)
        told["provenance"] = {**provenance(), "threads": torch.get_num_threads()}
        write_json(RESULTS, told)


if __name__ == "__main__":
    main()
