"""CogVideoX text-to-video (arXiv 2408.06072): a transformer over text and space-time patches, predicting v."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcm.errors import UserError
from mcm.models.codec import CausalCodec, VideoCodec
from mcm.models.folders import class_of, component, load_network
from mcm.models.text import T5Encoder, TextEncoder
from mcm.models.video import Control, Family, VideoDenoiser


class CogVideoXDenoiser(VideoDenoiser):
    """Over diffusers' CogVideoXTransformer3DModel, which takes frames before channels.

    Where its configuration asks for rotary embeddings of the places (5b; the 2b model adds its own sines), they are
    made as CogVideoXPipeline makes them.
    """

    def predict(self, z: Tensor, t: Tensor, hidden: Tensor, control: Control | None) -> Tensor:
        said = self.network(
            z.transpose(1, 2), hidden, t, image_rotary_emb=self._rotary(z), return_dict=False
        )  # fmt: skip
        return said[0].transpose(1, 2)

    def _rotary(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines, (T * h/p * w/p, head width) each, of the places of z (B, C, T, h, w); None for none."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        network: Any = self.network
        config = network.config
        if not config.use_rotary_positional_embeddings:
            return None
        p = config.patch_size
        grid = (z.shape[3] // p, z.shape[4] // p)
        crop = get_resize_crop_region_for_grid(grid, config.sample_width // p, config.sample_height // p)
        cos, sin = get_3d_rotary_pos_embed(config.attention_head_dim, crop, grid, z.shape[2], device=z.device)
        return cos, sin


class CogVideoXCodec(CausalCodec):
    """diffusers' AutoencoderKLCogVideoX, frozen: z = encoded * scaling_factor.

    Frames must be 8k + 1: latent frames are decoded two at a time, three at first, and an even number of them has no
    single first frame.
    """

    def _measure(self, config: Any) -> None:
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.channels = int(config.latent_channels)
        self.time_factor = int(config.temporal_compression_ratio)
        self.frame_step = 2 * self.time_factor
        self.scaling, self.shift = float(config.scaling_factor), 0.0

    def _parts(self, frames: int) -> list[tuple[int, int]]:
        if frames % 2 == 0:
            raise ValueError(f"{frames} latent frames: expected an odd number")
        starts = [0, *range(3, frames, 2)]
        return list(zip(starts, [*starts[1:], frames], strict=True))

    def _decode_part(self, z: Tensor, first: bool, cache: Any) -> tuple[Tensor, Any]:
        if self.vae.post_quant_conv is not None:
            z = self.vae.post_quant_conv(z)
        return self.vae.decoder(z, conv_cache=cache)


class CogVideoX(Family):
    """Folders with a CogVideoXTransformer3DModel for text alone, of the first version (2b, 5b)."""

    name = "cogvideox"
    layout = "transformer/ of class CogVideoXTransformer3DModel"
    part = "transformer"
    denoiser = CogVideoXDenoiser
    defaults: ClassVar = {"frames": 49, "side": (480, 720), "fps": 8, "guidance_scale": 6.0}

    def matches(self, folder: Path) -> bool:
        return class_of(folder, "transformer") == "CogVideoXTransformer3DModel"

    def network(self, folder: Path, dtype: torch.dtype) -> Any:
        from diffusers import CogVideoXTransformer3DModel

        network = load_network(CogVideoXTransformer3DModel, component(folder, "transformer"), dtype)
        config = network.config
        if config.in_channels != config.out_channels or config.use_learned_positional_embeddings:
            raise UserError(
                f"model {folder}: its transformer/ wants a picture beside the noise ({config.in_channels} channels in, "
                f"{config.out_channels} out); expected a text-to-video model such as THUDM/CogVideoX-2b"
            )
        if config.patch_size_t is not None:
            raise UserError(
                f"model {folder}: its transformer/ has patches over time (patch_size_t {config.patch_size_t}), as "
                "CogVideoX 1.5 has; expected the first version, THUDM/CogVideoX-2b or THUDM/CogVideoX-5b"
            )
        return network

    def codec(self, folder: Path, dtype: torch.dtype) -> VideoCodec:
        from diffusers import AutoencoderKLCogVideoX

        return CogVideoXCodec(load_network(AutoencoderKLCogVideoX, component(folder, "vae"), dtype))

    def text(self, folder: Path, network: Any, dtype: torch.dtype) -> TextEncoder:
        from transformers import T5EncoderModel

        return T5Encoder.read(T5EncoderModel, folder, network.config.max_text_seq_length, masked=False, dtype=dtype)

    def text_widths(self, network: Any) -> set[int]:
        return {network.config.text_embed_dim}

    def multiple(self, network: Any) -> int:
        return network.config.patch_size

    def stated(self, network: Any) -> Mapping[str, Any]:
        config = network.config
        return {"sample_size": (config.sample_height, config.sample_width), "frames": config.sample_frames}


FAMILY = CogVideoX()
