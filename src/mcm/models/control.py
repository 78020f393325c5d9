"""ControlNets (arXiv 2302.05543): a diffusers ControlNetModel that steers a video's frames by pictures, one for each.

The network was made for the picture model that a teacher was built on; the frames of a video are a batch of pictures to
it, as in diffusers' AnimateDiffControlNetPipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from mcm.diffusion.paths import Denoised
from mcm.errors import UserError
from mcm.models.folders import find_folder, load_network, read_json
from mcm.models.video import Control, TextEmbedding, VideoModel, families

CLASS = "ControlNetModel"


class FrameControl:
    """A ControlNet with the pictures that it follows: (z, t, text) -> the `Control` there.

    network: diffusers' ControlNetModel; pictures: (B, 3, T, H, W) in [0, 1], or one clip of them for all;
    conditioning_scale: of the residuals, diffusers' controlnet_conditioning_scale; 0 is no control.
    """

    def __init__(self, network: Any, pictures: Tensor, conditioning_scale: float = 1.0) -> None:
        self.network, self.pictures, self.conditioning_scale = network, pictures, conditioning_scale

    def __call__(self, z: Tensor, t: Tensor, text: TextEmbedding) -> Control:
        """z (N, C, T, h, w), t (N,), text of N prompts or of one -> residuals of N*T frames.

        Where there are several times as many clips as pictures (the halves of guidance, one after the other), the
        pictures begin anew.
        """
        count, frames = z.shape[0], z.shape[2]
        if count % len(self.pictures) or self.pictures.shape[2] != frames:
            raise ValueError(
                f"conditioning pictures {tuple(self.pictures.shape)} for latents {tuple(z.shape)}: expected as many "
                "frames, and as many clips or a part of them"
            )
        dtype = self.network.dtype
        pictures = self.pictures.to(z.device, dtype).repeat(count // len(self.pictures), 1, 1, 1, 1)
        down, mid = self.network(
            _flat(z.to(dtype)),
            t.repeat_interleave(frames),
            encoder_hidden_states=text.hidden.expand(count, -1, -1).to(dtype).repeat_interleave(frames, dim=0),
            controlnet_cond=_flat(pictures),
            conditioning_scale=self.conditioning_scale,
            return_dict=False,
        )
        return Control(tuple(down), mid)

    def steer(self, denoise: Callable[..., Denoised]) -> Callable[[Tensor, Tensor, TextEmbedding], Denoised]:
        """A denoiser, a student's or a teacher's, that follows the pictures."""
        return lambda z, t, text: denoise(z, t, text, control=self(z, t, text))


def _flat(video: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B*T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def load_controlnet(name: str | Path | None, model: VideoModel) -> Any:
    """The ControlNetModel in the folder (or of the pocket name, or of the hub id) `name`, beside `model`'s network.

    Frozen, in eval mode, of the network's dtype and on its device. UserError where the model's family has no picture
    model for it, where nothing is named or found, and where it does not fit the model.
    """
    if not model.denoiser.takes_controlnet:
        able = " or ".join(name for name, family in families().items() if family.denoiser.takes_controlnet)
        raise UserError(
            f"teacher {model.name}: a {type(model.denoiser.network).__name__} cannot be steered by a ControlNet of "
            f"pictures; expected a teacher of the family {able}"
        )
    if name is None:
        raise UserError(
            f"teacher {model.name}: no ControlNet is known for it; name one (--controlnet): a diffusers {CLASS} "
            "trained for the picture model inside (lllyasviel/control_v11p_sd15_openpose for Stable Diffusion 1.5)"
        )
    from diffusers import ControlNetModel

    folder = find_folder(name, "controlnet")
    config = read_json(folder / "config.json", f"controlnet {name}")
    if config.get("_class_name") != CLASS:
        raise UserError(f"controlnet {name}: holds a {config.get('_class_name')}; expected a diffusers {CLASS}")
    weight = next(model.denoiser.network.parameters())
    network = load_network(ControlNetModel, folder, weight.dtype)
    for what, found, needed in _fits(network.config, model):
        if found != needed:
            raise UserError(
                f"controlnet {name}: its {what} {found} does not fit teacher {model.name}, which has {needed}; "
                "expected one trained for this teacher's picture model"
            )
    return network.to(weight.device)


def _fits(config: Any, model: VideoModel) -> list[tuple[str, Any, Any]]:
    """(what, the ControlNet's, the model's) that must be equal."""
    own: Any = model.denoiser.network.config
    depth = len(config.block_out_channels)
    return [
        ("number of latent channels (in_channels)", config.in_channels, own.in_channels),
        ("widths of blocks (block_out_channels)", [*config.block_out_channels], [*own.block_out_channels]),
        (
            "number of layers (layers_per_block)",
            _each(config.layers_per_block, depth),
            _each(own.layers_per_block, len(own.block_out_channels)),
        ),
        ("width of text (cross_attention_dim)", config.cross_attention_dim, own.cross_attention_dim),
        (
            "reduction of pictures (conditioning_embedding_out_channels)",
            2 ** (len(config.conditioning_embedding_out_channels) - 1),
            model.codec.factor,
        ),
        ("number of picture channels (conditioning_channels)", config.conditioning_channels, 3),
        # Such a network speaks in one half of guidance only; none of those for poses does.
        ("pooling (global_pool_conditions)", config.global_pool_conditions, False),
    ]


def _each(value: Any, count: int) -> list[Any]:
    return [value] * count if isinstance(value, int) else [*value]
