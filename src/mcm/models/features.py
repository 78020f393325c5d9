"""Frozen features of pictures: what the frame discriminator's heads look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcm.errors import UserError
from mcm.models.folders import find_folder, load_network, read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FrozenFeatures(nn.Module):
    """The patch tokens after some blocks of a frozen DINOv2 (arXiv 2304.07193); the class token is left out.

    names: of the features in their order, "block2" and so on (blocks count from 0); dims: their widths. side:
    frames are resized to side x side pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Any,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        side: int | None = None,
        blocks: Sequence[int] | None = None,
    ) -> None:
        """network: a Dinov2Model. mean, std: of its pixels in [0, 1]. side: by default the image_size of its
        configuration; rounded down to whole patches. blocks: by default the ends of the four quarters of the
        depth, 2, 5, 8, 11 of 12."""
        super().__init__()
        depth = int(network.config.num_hidden_layers)
        if blocks is None:
            blocks = sorted({max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)})
        if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= depth:
            raise UserError(
                f"feature blocks {list(blocks)}: expected rising numbers from 0 to {depth - 1}, for the "
                f"backbone has {depth} blocks"
            )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(
                f"backbone: image_mean {mean}, image_std {std}; expected three numbers each, std above 0"
            )
        patch = int(network.config.patch_size)
        wanted = int(network.config.image_size) if side is None else side
        if wanted < patch:
            raise UserError(
                f"backbone: pictures of side {wanted}; expected at least one patch, {patch} pixels"
            )
        self.side = wanted // patch * patch
        self.blocks = tuple(blocks)
        self.names = tuple(f"block{block}" for block in blocks)
        self.dims = dict.fromkeys(self.names, int(network.config.hidden_size))
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)

    @classmethod
    def load(
        cls, name: str | Path, blocks: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
    ) -> Self:
        """From a transformers folder of type dinov2, a pocket name, or a Hugging Face id
        (facebook/dinov2-small).

        A preprocessor_config.json beside the weights states image_mean, image_std and crop_size, the side
        that the network is used at (DINOv2's image_size, 518, is only what its position table was made for).
        UserError where the folder is of another type.
        """
        from transformers import Dinov2Model

        folder = find_folder(name, "backbone")
        found = read_json(folder / "config.json", f"backbone {name}").get("model_type")
        if found != "dinov2":
            raise UserError(f"backbone {name}: model_type is {found!r} in config.json; expected 'dinov2'")
        path = folder / "preprocessor_config.json"
        stated = read_json(path, f"backbone {name}") if path.is_file() else {}
        crop = stated.get("crop_size")
        side = crop.get("height") if isinstance(crop, dict) else crop
        if side is not None and type(side) is not int:
            raise UserError(f"{path}: crop_size is {crop!r}; expected a number of pixels")
        mean, std = stated.get("image_mean", IMAGENET_MEAN), stated.get("image_std", IMAGENET_STD)
        return cls(load_network(Dinov2Model, folder, dtype), mean, std, side, blocks)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """frames (N, 3, H, W) in [-1, 1], any size -> for each block (N, L, D), L patches row by row.

        Differentiable in `frames`. Other shapes than squares are squeezed into one.
        """
        size = (self.side, self.side)
        if tuple(frames.shape[-2:]) != size:
            frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
        pixels = ((frames + 1) / 2 - self.mean) / self.std
        states = self.network(pixels.to(self.network.dtype), output_hidden_states=True).hidden_states
        # states[0] are the embeddings, states[k + 1] what block k says; token 0 is the class token
        return [states[block + 1][:, 1:].to(frames.dtype) for block in self.blocks]

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, but the frozen network stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self
