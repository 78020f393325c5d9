"""LoRAs of an image UNet (arXiv 2106.09685) in files as diffusers' save_lora_weights writes them, merged."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mcm.errors import UserError

_KEY = re.compile(r"(?:unet\.)?(?P<layer>.+?)\.(?P<part>lora_[AB]\.weight|lora\.(?:down|up)\.weight|alpha)")
_PARTS = {"lora.down.weight": "lora_A.weight", "lora.up.weight": "lora_B.weight"}  # diffusers, before peft
_EXPECTED = "expected a LoRA of the image UNet as diffusers' save_lora_weights writes it"


def lora_deltas(file: Path, what: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a LoRA changes, with it merged into them: W + alpha / rank * B A, by the names of `own`.

    own: an image UNet's weights; on torch's meta device the file's values are not read. what: for messages. UserError
    for a file that is damaged, no LoRA of such an image UNet, or has more than that, as of the text encoder.
    """
    meta = any(weight.device.type == "meta" for weight in own.values())
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            for key in opened.keys():  # noqa: SIM118 (it is no mapping)
                if key.startswith(("text_encoder.", "text_encoder_2.", "lora_te")):
                    raise UserError(
                        f"{what}: {file.name} changes the text encoder, too ({key}), which all bases share; {_EXPECTED}"
                    )
                match = _KEY.fullmatch(key)
                if match is None:
                    raise UserError(f"{what}: {file.name} has {key}; {_EXPECTED} (it converts other layouts)")
                part = _PARTS.get(match["part"], match["part"])
                shape = opened.get_slice(key).get_shape()
                value = torch.empty(shape, device="meta") if meta else opened.get_tensor(key).float()
                layers[match["layer"]][part] = value
    except (OSError, SafetensorError) as error:
        raise UserError(f"{what}: cannot read {file}: {error}") from error
    if not layers:
        raise UserError(f"{what}: {file} is empty; {_EXPECTED}")
    settings = _settings(metadata, f"{what}: {file}")
    return {f"{layer}.weight": _merged(layer, parts, settings, f"{what}: {file.name}", own) for layer, parts in
            layers.items()}  # fmt: skip


def _merged(
    layer: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], what: str, own: Mapping[str, Tensor]
) -> Tensor:
    weight = own.get(f"{layer}.weight")
    if weight is None:
        raise UserError(f"{what} adapts {layer}, which the teacher's image UNet lacks; {_EXPECTED}, of the same family")
    if not {"lora_A.weight", "lora_B.weight"} <= parts.keys():
        raise UserError(f"{what} has half of the matrices of {layer} alone; {_EXPECTED}")
    down, up = parts["lora_A.weight"].flatten(1), parts["lora_B.weight"].flatten(1)
    if (up.shape[1], up.shape[0], down.shape[1]) != (down.shape[0], len(weight), weight[0].numel()):
        raise UserError(
            f"{what}: the matrices of {layer}, {tuple(up.shape)} and {tuple(down.shape)}, do not fit the teacher's "
            f"weight {tuple(weight.shape)}; {_EXPECTED}, of the same family"
        )
    rank = len(down)
    if "alpha" in parts:
        alpha = 1.0 if weight.device.type == "meta" else float(parts["alpha"])
    else:
        patterns = settings.get("alpha_pattern") or {}
        named = (a for pattern, a in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer))
        alpha = next(named, settings.get("lora_alpha") or rank)
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    change = (scale * up @ down).reshape(weight.shape)
    return (weight.detach().float() + change.to(weight.device)).to(weight.dtype)


def _settings(metadata: Mapping[str, str], what: str) -> dict[str, Any]:
    """peft's configuration, which diffusers may write into the file's header; {} where there is none."""
    if (text := metadata.get("lora_adapter_metadata")) is None:
        return {}
    try:
        return {key.removeprefix("unet."): value for key, value in dict(json.loads(text)).items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: its lora_adapter_metadata cannot be read ({error}); {_EXPECTED}") from error
