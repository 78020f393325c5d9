"""A program that knows diffusers and peft and nothing of mcm: it loads exports and makes videos from given noise.

`python outside.py jobs.json`: a list of {"folder", "teacher", "prompt", "seed", "steps", "shape" (C, T, h, w),
"frames", "size", "out"}. An export's own README.md is followed to the letter where it has code. Writes frames
(T, H, W, 3) in [0, 1].
"""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from diffusers.schedulers import scheduling_flow_match_lcm, scheduling_lcm
from safetensors.torch import load_file

own_noise = scheduling_lcm.randn_tensor


def code(folder: Path) -> list[str]:
    """The Python in an export's README.md."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def follow(folder: Path) -> Any:
    """The pipeline that the first lines of the README.md make."""
    names: dict[str, Any] = {}
    os.chdir(folder)
    exec(code(folder)[0], names)
    return names["pipeline"]


def comfyui(folder: Path, teacher: str) -> Any:
    """Spatial adapters by diffusers' reader of kohya's files; motion LoRA as AnimateDiff adds it, up times down to its
    own names of layers, which diffusers' reader of AnimateDiff's motion modules turns into diffusers'."""
    pipeline: Any = DiffusionPipeline.from_pretrained(teacher)
    for path in sorted(folder.glob("*.safetensors")):
        if not path.stem.endswith("_motion_lora"):
            pipeline.load_lora_weights(str(folder), weight_name=path.name)
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
            continue
        weights, added = load_file(path), {}
        for key, down in weights.items():
            if ".down." in key:
                layer = key.replace("processor.", "").replace("_lora", "").replace("down.", "")
                layer = layer.replace("to_out.", "to_out.0.")
                added[layer] = weights[key.replace(".down.", ".up.")] @ down
        assert all("temporal_transformer" in layer for layer in added)
        for name, weight in convert_animatediff_checkpoint_to_diffusers(added).items():
            pipeline.unet.get_parameter(name).data += weight
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, timestep_scaling=4.0)
    return pipeline


def make(pipeline: Any, job: dict[str, Any], steps: int) -> np.ndarray:
    """A video whose noise, the first and the later one, is drawn as (C, T, h, w) whatever the pipeline's layout."""
    rng = torch.Generator().manual_seed(job["seed"])
    first = type(pipeline).__name__ == "CogVideoXPipeline"  # whose latents are (1, T, C, h, w)
    start = torch.randn(1, *job["shape"], generator=rng)

    def given(shape: Any, **_: Any) -> torch.Tensor:
        noise = torch.randn(job["shape"], generator=rng)
        return (noise.transpose(0, 1) if first or len(shape) == 4 else noise).reshape(shape)

    scheduling_lcm.randn_tensor = scheduling_flow_match_lcm.randn_tensor = given
    flow = pipeline.scheduler
    if type(flow).__name__ == "FlowMatchLCMScheduler":  # as the second lines of the README.md tell
        levels = [1 - (50 * k // steps) / 50 for k in range(steps)]
        flow.set_timesteps = partial(type(flow).set_timesteps, flow, sigmas=levels)
    height, width = job["size"]
    return pipeline(
        job["prompt"], num_frames=job["frames"], height=height, width=width, num_inference_steps=steps,
        guidance_scale=1.0, latents=start.transpose(1, 2) if first else start, output_type="np",
    ).frames[0]  # fmt: skip


def main(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        folder = Path(job["folder"])
        text = bool(code(folder))
        pipeline = follow(folder) if text else comfyui(folder, job["teacher"])
        pipeline.set_progress_bar_config(disable=True)
        made = {f"steps{steps}": make(pipeline, job, steps) for steps in job["steps"]}
        scheduling_lcm.randn_tensor = scheduling_flow_match_lcm.randn_tensor = own_noise
        if text:  # and its second lines, as they stand
            names = {"pipeline": pipeline, "torch": torch}
            exec(code(folder)[1], names)
            made["readme"] = names["frames"]
        np.savez(job["out"], **made)
    assert not [name for name in sys.modules if name.split(".")[0] == "mcm"]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
