"""The contract of a text-to-video model, whatever its family: denoiser, codec, text encoder, and the loader.

A family is one module of this package with a module-level `FAMILY`, an instance of a `Family` subclass; it is
found by scanning, nothing is registered. Video latents are (B, C, T, h, w), pixels (B, 3, T, H, W) floats in
[-1, 1].
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

import mcm.models
from mcm.diffusion.paths import Denoised, NoisePath, path_from_config
from mcm.errors import UserError, nearest
from mcm.models.codec import VideoCodec
from mcm.models.folders import class_of, component, find_folder, read_json
from mcm.models.text import TextEmbedding, TextEncoder

__all__ = [
    "Control",
    "Family",
    "TextEmbedding",
    "TextEncoder",
    "VideoCodec",
    "VideoDenoiser",
    "VideoModel",
    "families",
    "load_video_model",
]

PARTS = ("unet", "motion_adapter", "transformer", "vae", "text_encoder", "tokenizer", "scheduler")


class Control(NamedTuple):
    """What a ControlNet adds to a UNet: residuals of the frames, clip by clip.

    down: one (B*T, c, h, w) for each skip connection; mid: (B*T, c, h, w).
    """

    down: tuple[Tensor, ...]
    mid: Tensor

    def residuals(self) -> dict[str, Any]:
        """As keyword arguments of diffusers' UNets."""
        return {"down_block_additional_residuals": self.down, "mid_block_additional_residual": self.mid}


class VideoDenoiser(nn.Module):
    """(z, t, text) -> Denoised, whatever the network wants its inputs to look like.

    network: the diffusers module; path: its noise path; kind: what it predicts, as in `NoisePath.read`.
    multiple: latent heights and widths must be multiples of it. max_frames: the most frames, None where any
    number goes. The network never leaves eval mode: a family's dropout (UNet3D's temporal convolutions have
    some) would make the teacher's word random. Gradients flow all the same. takes_controlnet: whether it takes
    the residuals of a ControlNet that was made for pictures.
    """

    takes_controlnet: ClassVar[bool] = False

    def __init__(
        self, network: nn.Module, path: NoisePath, kind: str, multiple: int = 1, max_frames: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.kind = kind
        self.multiple = multiple
        self.max_frames = max_frames
        self.eval()

    def forward(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        """z (B, C, T, h, w), t (B,) in the network's units, text of B prompts (or of one, for all clips) ->
        estimates of the shape and dtype of z."""
        if text.hidden.shape[0] not in (1, z.shape[0]):
            raise ValueError(
                f"{text.hidden.shape[0]} prompts for {z.shape[0]} clips: expected as many, or one"
            )
        dtype = next(self.network.parameters()).dtype
        hidden = text.hidden.expand(z.shape[0], -1, -1).to(dtype)
        prediction = self.predict(z.to(dtype), t, hidden, control)
        return self.path.read(prediction.to(z.dtype), z, t, self.kind)

    def predict(self, z: Tensor, t: Tensor, hidden: Tensor, control: Control | None) -> Tensor:
        """The network's raw output (B, C, T, h, w); hidden (B, L, D) is the text. One method a family."""
        raise NotImplementedError

    def is_temporal(self, weight: str) -> bool:
        """Whether the weight of the network so called belongs to its layers over time. UserError as `pictures`."""
        raise self._no_picture_model()

    def pictures(self) -> AbstractContextManager[None]:
        """Inside, clips of one frame go through the picture model that the network was built on.

        UserError for a family without one.
        """
        raise self._no_picture_model()

    def _no_picture_model(self) -> UserError:
        return UserError(
            f"a {type(self.network).__name__} has no picture model of its own inside, which this method needs: "
            "expected a teacher of the family animatediff"
        )

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, but the network stays in eval mode (see the class)."""
        super().train(mode)
        self.network.eval()
        return self


class Family(ABC):
    """How one family of teachers is recognised and loaded.

    layout: what its folders look like, for messages. denoiser: the class that wraps its network. defaults:
    frames, side (pixels, where the network's configuration states no sample_size), fps, guidance_scale.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    denoiser: ClassVar[type[VideoDenoiser]]
    defaults: ClassVar[Mapping[str, Any]]

    @abstractmethod
    def matches(self, folder: Path) -> bool:
        """Whether the pipeline folder is of this family; reads JSON files only."""

    @abstractmethod
    def network(self, folder: Path, dtype: torch.dtype) -> Any:
        """The folder's denoising network, frozen, on the CPU. UserError naming what is missing."""

    def max_frames(self, network: Any) -> int | None:
        """The most frames that the network takes; None where any number goes."""
        return None

    def load(self, folder: Path, name: str, dtype: torch.dtype) -> VideoModel:
        """The model on the CPU, frozen. UserError naming what is missing or does not fit."""
        config, path, kind = read_scheduler(folder)
        network = self.network(folder, dtype)
        codec, text = VideoCodec.load(folder, dtype), TextEncoder.load(folder, dtype)
        _check_fit(folder, network, codec, text)
        most = self.max_frames(network)
        facts = read_facts(folder, self.defaults, most, network.config.sample_size, codec.factor)
        denoiser = self.denoiser(network, path, kind, 2**network.num_upsamplers, most)
        model = VideoModel(
            name=name, family=self.name, denoiser=denoiser, codec=codec, text=text, path=path,
            scheduler_config=config, folder=folder, **facts,
        )  # fmt: skip
        model.check_geometry(model.frames, model.size)
        return model


@dataclass
class VideoModel:
    """A teacher: its networks and the facts about it.

    path: the denoiser's; scheduler_config: the folder's scheduler_config.json, from which path and prediction
    type come. frames, size (H, W) in pixels, fps: what it was trained to make. guidance_scale: its usual
    guidance, in diffusers' convention.
    """

    name: str
    family: str
    denoiser: VideoDenoiser
    codec: VideoCodec
    text: TextEncoder
    path: NoisePath
    scheduler_config: dict[str, Any]
    frames: int
    size: tuple[int, int]
    fps: float
    guidance_scale: float
    folder: Path

    def latent_shape(
        self, frames: int | None = None, size: tuple[int, int] | None = None
    ) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one clip's latents, by default at the teacher's own frames and size (H, W)."""
        frames = self.frames if frames is None else frames
        size = self.size if size is None else size
        self.check_geometry(frames, size)
        factor = self.codec.factor
        return self.codec.channels, frames, size[0] // factor, size[1] // factor

    def check_geometry(self, frames: int, size: tuple[int, int]) -> None:
        """UserError unless the teacher can make clips of `frames` frames of `size` (H, W) pixels."""
        most = self.denoiser.max_frames
        if frames < 1 or (most is not None and frames > most):
            allowed = "at least 1" if most is None else f"1 to {most}"
            raise UserError(f"frames {frames}: teacher {self.name} takes {allowed} frames")
        unit = self.codec.factor * self.denoiser.multiple
        if any(side < unit or side % unit for side in size):
            near = " x ".join(str(max(unit, round(side / unit) * unit)) for side in size)
            raise UserError(
                f"size {size[0]} x {size[1]}: teacher {self.name} takes heights and widths that are "
                f"multiples of {unit} pixels, for instance {near}"
            )

    def to(self, device: torch.device | str) -> Self:
        """Moves the three networks; returns the model itself."""
        self.denoiser.to(device)
        self.codec.to(device)
        self.text.to(device)
        return self


def families() -> dict[str, Family]:
    """Every family by its name: the `FAMILY` of each module of this package that has one."""
    found = {}
    for module in pkgutil.iter_modules(mcm.models.__path__):
        family = getattr(importlib.import_module(f"mcm.models.{module.name}"), "FAMILY", None)
        if family is not None:
            found[family.name] = family
    return found


def load_video_model(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VideoModel:
    """The teacher called `name`: a diffusers pipeline folder, a pocket teacher's name, or a Hugging Face id.

    Weights come up frozen, in `dtype` whatever precision stores them. UserError where nothing is found, the
    class of the pipeline belongs to no family, or a component is missing.
    """
    folder = find_folder(name, "teacher", PARTS)
    known = families()
    for family in known.values():
        if family.matches(folder):
            return family.load(folder, str(name), dtype).to(device)
    pipeline = class_of(folder, "")
    network = class_of(folder, "unet") or class_of(folder, "transformer")
    layouts = "; ".join(f"{family.name} ({family.layout})" for family in known.values())
    if pipeline is None and network is None:
        raise UserError(
            f"teacher {name}: no model_index.json and no unet/config.json in {folder}; expected a pipeline "
            f"folder of one of the families {layouts}"
        )
    stated = " with ".join(str(found) for found in (pipeline, network) if found)
    raise UserError(f"teacher {name}: {stated} is of no known family; known are {layouts}")


def read_scheduler(folder: Path) -> tuple[dict[str, Any], NoisePath, str]:
    """A pipeline folder's scheduler configuration, the noise path it describes, and the prediction type."""
    config = read_json(component(folder, "scheduler") / "scheduler_config.json", f"model {folder}")
    kind = str(config.get("prediction_type", "epsilon"))
    return config, path_from_config(config), "flow" if kind == "flow_prediction" else kind


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
    facts: dict[str, Any] = {
        "frames": min(defaults["frames"], max_frames or defaults["frames"]),
        "size": [n * factor for n in latents] or [side, side],
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
            f"{path}: frames, size [height, width], fps and guidance_scale must be numbers above 0; got "
            f"{stated}"
        )
    return {**facts, "size": tuple(size), "fps": float(facts["fps"])}


def _check_fit(folder: Path, network: Any, codec: VideoCodec, text: TextEncoder) -> None:
    """UserError where components of different models lie in one folder."""
    if network.config.in_channels != codec.channels:
        raise UserError(
            f"model {folder}: unet/ takes {network.config.in_channels} latent channels, vae/ makes "
            f"{codec.channels}; expected components of one model"
        )
    stated = network.config.cross_attention_dim
    if any(width != text.width for width in ([stated] if isinstance(stated, int) else stated)):
        raise UserError(
            f"model {folder}: unet/ reads text of width {stated}, text_encoder/ gives {text.width}; expected "
            "components of one model"
        )
