"""Wan 2.1 and 2.2 text-to-video (arXiv 2503.20314): a transformer over space-time patches, on a rectified flow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mcm.errors import UserError
from mcm.models.codec import CausalCodec, VideoCodec
from mcm.models.folders import class_of, component, load_network, read_json
from mcm.models.text import T5Encoder, TextEncoder
from mcm.models.video import Control, Family, VideoDenoiser

TOKENS = 512  # of a caption, as WanPipeline has it
TI2V_CHANNELS = 48  # of the latents of Wan 2.2's 5B model, which alone has them


class WanDenoiser(VideoDenoiser):
    """Over diffusers' WanTransformer3DModel, or `Experts`."""

    @property
    def dtype(self) -> torch.dtype:
        # Wan's norms and tables stay in float32 whatever it is loaded in; diffusers knows which they are.
        network: Any = self.network
        return network.dtype

    def predict(self, z: Tensor, t: Tensor, hidden: Tensor, control: Control | None) -> Tensor:
        return self.network(z, t, hidden, return_dict=False)[0]


class Experts(nn.Module):
    """Wan 2.2's two networks: `transformer` at times of at least `boundary`, `transformer_2` below.

    boundary: in the scheduler's units, 0 to 1000. Called as a WanTransformer3DModel, each clip at its own time.
    """

    _supports_gradient_checkpointing = True

    def __init__(self, transformer: Any, transformer_2: Any, boundary: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2, self.boundary = transformer, transformer_2, boundary

    @property
    def config(self) -> Any:
        """The configuration that both share, with the boundary."""
        from diffusers.configuration_utils import FrozenDict

        return FrozenDict({**self.transformer.config, "boundary": self.boundary})

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Latents (B, C, T, h, w), times (B,), text (B, L, D) -> a tuple of one, the flow (B, C, T, h, w)."""
        high = timestep >= self.boundary
        said, rows = [], []
        for expert, mask in ((self.transformer, high), (self.transformer_2, ~high)):
            chosen = mask.nonzero()[:, 0]
            if len(chosen):
                text = encoder_hidden_states[chosen]
                said.append(expert(hidden_states[chosen], timestep[chosen], text, return_dict=False)[0])
                rows.append(chosen)
        return (torch.cat(said)[torch.cat(rows).argsort()],)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """As diffusers', of both."""
        self.transformer.enable_gradient_checkpointing(gradient_checkpointing_func)
        self.transformer_2.enable_gradient_checkpointing(gradient_checkpointing_func)

    def disable_gradient_checkpointing(self) -> None:
        self.transformer.disable_gradient_checkpointing()
        self.transformer_2.disable_gradient_checkpointing()


class WanCodec(CausalCodec):
    """diffusers' AutoencoderKLWan, frozen: z = (encoded - mean) / std, for every channel its own.

    Frames must be 4k + 1. diffusers clips what is decoded to [-1, 1]; here it is left as it is.
    """

    def _measure(self, config: Any) -> None:
        self.factor = int(config.scale_factor_spatial)
        self.channels = int(config.z_dim)
        self.time_factor = self.frame_step = int(config.scale_factor_temporal)
        mean, std = (torch.tensor(list(v)).reshape(-1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        self.register_buffer("shift", mean, persistent=False)
        self.register_buffer("scaling", 1 / std, persistent=False)

    def _parts(self, frames: int) -> list[tuple[int, int]]:
        return [(k, k + 1) for k in range(frames)]

    def _decode_part(self, z: Tensor, first: bool, cache: Any) -> tuple[Tensor, Any]:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify

        if cache is None:  # a place for every causal convolution, which fills it
            cache = [None] * sum(isinstance(m, WanCausalConv3d) for m in self.vae.decoder.modules())
        pixels = self.vae.decoder(
            self.vae.post_quant_conv(z), feat_cache=cache, feat_idx=[0], first_chunk=first
        )  # fmt: skip
        if self.vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=self.vae.config.patch_size)
        return pixels, cache


class Wan(Family):
    """Folders with a WanTransformer3DModel for text alone, or with Wan 2.2's two.

    Wan 2.2's TI2V-5B is among them, as the text-to-video model that it is without a picture.
    """

    name = "wan"
    layout = "transformer/ of class WanTransformer3DModel, for Wan 2.2 with transformer_2/"
    part = "transformer"
    denoiser = WanDenoiser
    defaults: ClassVar = {"frames": 81, "side": (480, 832), "fps": 16, "guidance_scale": 5.0}

    def matches(self, folder: Path) -> bool:
        return class_of(folder, "transformer") == "WanTransformer3DModel"

    def network(self, folder: Path, dtype: torch.dtype) -> Any:
        from diffusers import WanTransformer3DModel

        network = load_network(WanTransformer3DModel, component(folder, "transformer"), dtype)
        config = network.config
        if config.image_dim is not None or config.in_channels != config.out_channels:
            raise UserError(
                f"model {folder}: its transformer/ wants a picture beside the noise ({config.in_channels} channels in, "
                f"{config.out_channels} out); expected a text-to-video model such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
            )
        ratio = self._boundary_ratio(folder)
        if ratio is None:
            return network
        second = load_network(WanTransformer3DModel, component(folder, "transformer_2"), dtype)
        if _stated(second) != _stated(network):
            raise UserError(
                f"model {folder}: transformer/ and transformer_2/ have different configurations; expected the two "
                "experts of one model"
            )
        scheduler = read_json(component(folder, "scheduler") / "scheduler_config.json", f"model {folder}")
        return Experts(network, second, ratio * int(scheduler.get("num_train_timesteps", 1000)))

    def _boundary_ratio(self, folder: Path) -> float | None:
        """Of the pipeline's index; None where there is one network. UserError where index and folders disagree."""
        path = folder / "model_index.json"
        ratio = (read_json(path, f"model {folder}") if path.is_file() else {}).get("boundary_ratio")
        if ratio is None and not (folder / "transformer_2").is_dir():
            return None
        if not isinstance(ratio, float | int) or isinstance(ratio, bool) or not 0 < ratio < 1:
            raise UserError(
                f"model {folder}: two transformers, but boundary_ratio in {path} is {ratio!r}; expected a number "
                "between 0 and 1 (0.875 for Wan2.2-T2V-A14B), the share of the times that begins with transformer/"
            )
        return float(ratio)

    def codec(self, folder: Path, dtype: torch.dtype) -> VideoCodec:
        from diffusers import AutoencoderKLWan

        return WanCodec(load_network(AutoencoderKLWan, component(folder, "vae"), dtype))

    def text(self, folder: Path, network: Any, dtype: torch.dtype) -> TextEncoder:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean
        from transformers import UMT5EncoderModel

        return T5Encoder.read(UMT5EncoderModel, folder, TOKENS, masked=True, clean=prompt_clean, dtype=dtype)

    def text_widths(self, network: Any) -> set[int]:
        return {network.config.text_dim}

    def multiple(self, network: Any) -> int:
        return math.lcm(*network.config.patch_size[1:])

    def max_frames(self, network: Any) -> int | None:
        return 4 * (network.config.rope_max_seq_len - 1) + 1  # the length of its table of positions

    def components(self, network: Any, scheduler: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(network, Experts):
            return super().components(network, scheduler)
        ratio = network.boundary / int(scheduler.get("num_train_timesteps", 1000))
        return {
            "transformer": network.transformer, "transformer_2": network.transformer_2, "boundary_ratio": ratio,
        }  # fmt: skip

    def stated(self, network: Any) -> Mapping[str, Any]:
        # Wan's configurations do not tell sizes; these are of the model cards.
        if network.config.in_channels == TI2V_CHANNELS:
            return {"sample_size": None, "frames": 121, "side": (704, 1280), "fps": 24}
        if isinstance(network, Experts):
            return {"sample_size": None, "guidance_scale": 4.0}
        return {"sample_size": None}


def _stated(network: Any) -> dict[str, Any]:
    """A network's configuration without what tells of its origin."""
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


FAMILY = Wan()
