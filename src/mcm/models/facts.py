"""What a pipeline folder says of a teacher: its noise path, its usual videos, and whether its components fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mcm.diffusion.paths import NoisePath, RectifiedFlow, path_from_config
from mcm.errors import UserError, nearest
from mcm.models.codec import VideoCodec
from mcm.models.folders import component, read_json
from mcm.models.text import TextEncoder


def read_scheduler(folder: Path) -> tuple[dict[str, Any], NoisePath, str]:
    """A pipeline folder's scheduler configuration, the noise path it describes, and the prediction type."""
    config = read_json(component(folder, "scheduler") / "scheduler_config.json", f"model {folder}")
    with torch.device("cpu"):  # a table of numbers, also where networks are shapes alone (the meta device)
        path = path_from_config(config)
    if isinstance(path, RectifiedFlow) and config.get("prediction_type") in (None, "flow_prediction"):
        return config, path, "flow"  # FlowMatchEulerDiscreteScheduler knows no other, and does not say so
    return config, path, str(config.get("prediction_type", "epsilon"))


def read_facts(
    folder: Path, defaults: Mapping[str, Any], max_frames: int | None, sample_size: Any, factor: int
) -> dict[str, Any]:
    """frames, size (H, W), fps and guidance_scale of the pipeline in `folder`.

    An `mcm.json` there, {"frames": 8, "size": [64, 64], "fps": 8, "guidance_scale": 7.5}, any of them, goes
    before the family's defaults. sample_size: latents, a number or a pair, as the network's configuration
    states them. UserError on an unknown key or a value out of range.
    """
    side = defaults["side"]
    latents = [sample_size] * 2 if isinstance(sample_size, int) else list(sample_size or [])
    pixels = [side, side] if isinstance(side, int) else list(side)
    facts: dict[str, Any] = {
        "frames": min(defaults["frames"], max_frames or defaults["frames"]),
        "size": [n * factor for n in latents] or pixels,
        "fps": defaults["fps"],
        "guidance_scale": defaults["guidance_scale"],
    }
    path = folder / "mcm.json"
    stated = read_json(path, f"model {folder}") if path.is_file() else {}
    for key in stated:
        if key not in facts:
            raise UserError(f"{path}: unknown key {key!r}; expected {', '.join(facts)}{nearest(key, facts)}")
    facts |= stated
    size = facts["size"] if isinstance(facts["size"], list) and len(facts["size"]) == 2 else [None]
    if not all(type(v) is int and v > 0 for v in (facts["frames"], *size)) or not all(
        type(v) in (int, float) and v > 0 for v in (facts["fps"], facts["guidance_scale"])
    ):
        raise UserError(
            f"{path}: frames, size [height, width], fps and guidance_scale must be numbers above 0; got {stated}"
        )
    return {**facts, "size": tuple(size), "fps": float(facts["fps"])}


def check_fit(folder: Path, part: str, channels: int, widths: set[int], codec: VideoCodec, text: TextEncoder) -> None:
    """UserError where components of different models lie in one folder: `part` takes latents of `channels` and reads
    text of all `widths`."""
    if channels != codec.channels:
        raise UserError(
            f"model {folder}: {part}/ takes {channels} latent channels, vae/ makes {codec.channels}; expected "
            "components of one model"
        )
    if widths != {text.width}:
        raise UserError(
            f"model {folder}: {part}/ reads text of width {', '.join(map(str, sorted(widths)))}, text_encoder/ gives "
            f"{text.width}; expected components of one model"
        )
