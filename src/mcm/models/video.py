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
from mcm.diffusion.paths import Denoised, NoisePath
from mcm.errors import UserError
from mcm.models.codec import VideoCodec
from mcm.models.facts import check_fit, read_facts, read_scheduler
from mcm.models.folders import class_of, find_folder
from mcm.models.joined import joined
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

PARTS = ("unet", "motion_adapter", "transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler")


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
        hidden = text.hidden.expand(z.shape[0], -1, -1).to(self.dtype)
        prediction = self.predict(z.to(self.dtype), t, hidden, control)
        return self.path.read(prediction.to(z.dtype), z, t, self.kind)

    @property
    def dtype(self) -> torch.dtype:
        """What the network takes."""
        return next(self.network.parameters()).dtype

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

    layout: what its folders look like, for messages; part: the one of them with the network. denoiser: the class
    that wraps its network. defaults: frames, side (pixels, a number or a pair, where the network's configuration
    states no sample_size), fps, guidance_scale.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    part: ClassVar[str] = "unet"
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

    def codec(self, folder: Path, dtype: torch.dtype) -> VideoCodec:
        """The folder's autoencoder."""
        return VideoCodec.load(folder, dtype)

    def text(self, folder: Path, network: Any, dtype: torch.dtype) -> TextEncoder:
        """The folder's text encoder, as the network wants it."""
        return TextEncoder.load(folder, dtype)

    def text_widths(self, network: Any) -> set[int]:
        """The widths of text that the network reads."""
        stated = network.config.cross_attention_dim
        return {stated} if isinstance(stated, int) else set(stated)

    def multiple(self, network: Any) -> int:
        """Latent heights and widths must be multiples of it."""
        return 2**network.num_upsamplers

    def stated(self, network: Any) -> Mapping[str, Any]:
        """What the network's configuration says: sample_size, in latents, a number or a pair (None: nothing), and
        frames where it has them."""
        return {"sample_size": network.config.sample_size}

    def components(self, network: Any, scheduler: Mapping[str, Any]) -> dict[str, Any]:
        """The network as diffusers' pipeline takes it, by the names of its arguments. scheduler: its configuration."""
        return {self.part: network}

    def load(self, folder: Path, name: str, dtype: torch.dtype) -> VideoModel:
        """The model on the CPU, frozen. UserError naming what is missing or does not fit."""
        config, path, kind = read_scheduler(folder)
        network = self.network(folder, dtype)
        codec, text = self.codec(folder, dtype), self.text(folder, network, dtype)
        check_fit(folder, self.part, network.config.in_channels, self.text_widths(network), codec, text)
        most = self.max_frames(network)
        stated = dict(self.stated(network))
        size = stated.pop("sample_size")
        facts = read_facts(folder, {**self.defaults, **stated}, most, size, codec.factor)
        denoiser = self.denoiser(network, path, kind, self.multiple(network), most)
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
        """(C, T, h, w) of one clip's latents, by default at the teacher's own frames and size (H, W), in pixels.

        T is the number of latent frames, fewer than `frames` where the codec compresses time.
        """
        frames = self.frames if frames is None else frames
        size = self.size if size is None else size
        self.check_geometry(frames, size)
        factor = self.codec.factor
        return self.codec.channels, self.codec.latent_frames(frames), size[0] // factor, size[1] // factor

    def check_geometry(self, frames: int, size: tuple[int, int]) -> None:
        """UserError unless the teacher can make clips of `frames` frames of `size` (H, W) pixels."""
        most = self.denoiser.max_frames
        if frames < 1 or (most is not None and frames > most):
            allowed = "at least 1" if most is None else f"1 to {most}"
            raise UserError(f"frames {frames}: teacher {self.name} takes {allowed} frames")
        step = self.codec.frame_step
        if (frames - 1) % step:
            below = (frames - 1) // step * step + 1
            near = [str(n) for n in (below, below + step) if most is None or n <= most]
            raise UserError(
                f"frames {frames}: teacher {self.name} takes a multiple of {step} and one frame more, as its "
                f"autoencoder compresses time; for instance {' or '.join(near)}"
            )
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
    """The teacher called `name`: a diffusers pipeline folder, a pocket teacher's name, a Hugging Face id, or
    "BASE+ADAPTER" (see `mcm.models.joined`).

    Weights come up frozen, in `dtype` whatever precision stores them. UserError where nothing is found, the
    class of the pipeline belongs to no family, or a component is missing.
    """
    folder = joined(name) or find_folder(name, "teacher", PARTS)
    known = families()
    for family in known.values():
        if family.matches(folder):
            return family.load(folder, str(name), dtype).to(device)
    pipeline = class_of(folder, "")
    network = class_of(folder, "unet") or class_of(folder, "transformer")
    layouts = "; ".join(f"{family.name} ({family.layout})" for family in known.values())
    if pipeline is None and network is None:
        raise UserError(
            f"teacher {name}: no model_index.json and no unet/config.json or transformer/config.json in "
            f"{folder}; expected a pipeline folder of one of the families {layouts}"
        )
    stated = " with ".join(str(found) for found in (pipeline, network) if found)
    raise UserError(f"teacher {name}: {stated} is of no known family; known are {layouts}")
