"""Base image models beneath one set of layers over time (AnimateDiff-Lightning, arXiv 2403.12706).

AnimateDiff's motion modules serve any image model that is shaped as the one they were trained on. A base is such a
model: its weights take the place of the teacher's spatial ones, in place, for as long as a micro-batch takes. The text
encoder, the autoencoder and the noise path stay the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcm.errors import UserError, nearest
from mcm.models.folders import LORA_FILE, find_folder, load_network, read_json
from mcm.models.lora import lora_deltas
from mcm.models.video import VideoDenoiser

TEACHER = "teacher"  # the base that is the teacher as it is
IMAGE_UNET = "UNet2DConditionModel"
_Find = Callable[[str, str, Sequence[str]], Path]
_LAYOUT = (
    "a folder of an image UNet (a Stable Diffusion pipeline's, or its unet/), a LoRA of one as diffusers writes it, or "
    f'"{TEACHER}" for the teacher\'s own weights'
)
# What an image UNet does with weights of the same shapes; its other settings show in the shapes.
_ACTS = ("num_attention_heads", "norm_num_groups", "norm_eps", "act_fn")


class Bases:
    """The spatial weights of several bases, beside the network on its device: a copy for each base, and one of the
    teacher's own (of what the bases change). The network itself holds the teacher's whenever `beneath` is left.

    names: of the bases, in the order of their numbers.
    """

    def __init__(self, names: Sequence[str], own: Mapping[str, Tensor], others: Sequence[Mapping[str, Tensor]]) -> None:
        """own: the teacher's spatial weights by name; others: of each base those that differ; none for the teacher."""
        self.names, self._others = tuple(names), tuple(dict(weights) for weights in others)
        changed = {name for weights in self._others for name in weights}
        self._own = {name: own[name].detach().clone() for name in sorted(changed)}

    @classmethod
    def load(cls, names: Sequence[str], denoiser: VideoDenoiser, find: _Find = find_folder) -> Self:
        """The bases called `names` for a bare teacher (before there are adapters in it).

        A name is what `_LAYOUT` says; find: as `mcm.models.folders.find_folder`. UserError for a name given twice, a
        base that is not to be had or does not fit the teacher, and a teacher without an image model inside.
        """
        twice = [name for k, name in enumerate(names) if name in names[:k]]
        if twice:
            raise UserError(f"method.bases names {twice[0]!r} twice: every base counts once")
        own = spatial(denoiser)
        return cls(names, own, [{} if name == TEACHER else _weights(name, denoiser, own, find) for name in names])

    def __len__(self) -> int:
        return len(self.names)

    def turn(self, number: int) -> int:
        """The number of the base that the run's micro-batch `number` (of all ranks together) sees: each in turn."""
        return number % len(self)

    def held(self) -> int:
        """Bytes of all copies."""
        tensors = [t for weights in (self._own, *self._others) for t in weights.values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    @contextmanager
    def beneath(self, denoisers: Sequence[VideoDenoiser], number: int) -> Iterator[None]:
        """Inside, all `denoisers` have the spatial weights of base `number`; then the teacher's again, to the bit.

        Backward passes belong inside, too: they read the weights.
        """
        weights = self._others[number]
        try:
            for denoiser in denoisers:
                _put(denoiser, weights)
            yield
        finally:
            for denoiser in denoisers:
                _put(denoiser, {name: self._own[name] for name in weights})


def spatial(denoiser: VideoDenoiser) -> dict[str, nn.Parameter]:
    """The image model's weights inside a denoiser, by the names they have without adapters, themselves left out."""
    found = {}
    for name, weight in denoiser.network.named_parameters():
        if "lora_" not in name and not denoiser.is_temporal(name):
            found[name.replace(".base_layer.", ".")] = weight  # where peft keeps a layer that it adapts
    return found


@torch.no_grad()
def _put(denoiser: VideoDenoiser, weights: Mapping[str, Tensor]) -> None:
    inside = spatial(denoiser) if weights else {}
    for name, weight in weights.items():
        inside[name].copy_(weight)


def _weights(name: str, denoiser: VideoDenoiser, own: Mapping[str, Tensor], find: _Find) -> dict[str, Tensor]:
    """A base's weights, of those that `own` names, on their device and in their precision."""
    path = Path(name).expanduser()
    if path.suffix in (".safetensors", ".ckpt", ".bin", ".pt", ".pth"):
        if path.suffix != ".safetensors":
            raise UserError(f"base {name}: {path.suffix} files are pickled and never read; expected {_LAYOUT}")
        if not path.is_file():
            raise UserError(f"base {name}: no such file; expected {_LAYOUT}")
        return lora_deltas(path, f"base {name}", own)
    try:
        folder = find(name, "base", ("unet",))
    except UserError as error:
        from mcm.pocket.zoo import LOOKS

        raise UserError(f"{error}{nearest(name, [TEACHER, *LOOKS.values()])}") from error
    if (folder / LORA_FILE).is_file():
        return lora_deltas(folder / LORA_FILE, f"base {name}", own)
    return _image_unet(folder / "unet" if (folder / "unet").is_dir() else folder, name, denoiser, own)


def _image_unet(folder: Path, name: str, denoiser: VideoDenoiser, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from diffusers import UNet2DConditionModel

    if not (folder / "config.json").is_file():
        raise UserError(f"base {name}: neither {LORA_FILE} nor an image UNet's config.json in it; expected {_LAYOUT}")
    stated = read_json(folder / "config.json", f"base {name}")
    if (kind := stated.get("_class_name")) != IMAGE_UNET:
        raise UserError(f"base {name}: {folder} holds a {kind}, not a {IMAGE_UNET}; expected {_LAYOUT}")
    like = next(iter(own.values()))
    network = load_network(UNet2DConditionModel, folder, like.dtype)
    found = dict(network.named_parameters())
    fitting = "expected one of the teacher's architecture, as fine-tuned models of the same Stable Diffusion are"
    for weight in (*own, *found):
        if weight not in found or weight not in own:
            side = "lacks" if weight in own else "has, unlike the teacher's,"
            raise UserError(f"base {name}: its image UNet {side} the weight {weight}; {fitting}")
        if own[weight].shape != found[weight].shape:
            shapes = f"{tuple(found[weight].shape)}, the teacher's {tuple(own[weight].shape)}"
            raise UserError(f"base {name}: the shape of its {weight} is {shapes}; {fitting}")
    teachers: Any = denoiser.network.config
    for setting in _ACTS:
        if (theirs := _setting(network.config, setting)) != (known := _setting(teachers, setting)):
            raise UserError(f"base {name}: its image UNet's {setting} is {theirs}, the teacher's {known}; {fitting}")
    return {weight: tensor.detach().to(like.device) for weight, tensor in found.items()}


def _setting(config: Mapping[str, Any], name: str) -> Any:
    """A setting of a UNet; of heads, diffusers' image UNets state the number as attention_head_dim."""
    value = config.get(name)
    if value is None and name == "num_attention_heads":
        value = config.get("attention_head_dim")
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values[0] if len(set(values)) == 1 else values
