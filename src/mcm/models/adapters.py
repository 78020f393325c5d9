"""The student made of adapters: low-rank weights (arXiv 2106.09685, through peft) inside the teacher's
network."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcm.diffusion.paths import Denoised
from mcm.errors import UserError, one_of
from mcm.models.checkpointing import checkpoint
from mcm.models.folders import place, read_json
from mcm.models.student import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Student, check_same, stored
from mcm.models.video import Control, TextEmbedding, VideoDenoiser

TARGETS = ("all", "attention")
_PEFT_PREFIX = "base_model.model."  # how peft's own PeftModel names the wrapped network


class LoraStudent(Student):
    """Adapters "student" and, where averaged, "target" in the layers of the teacher's network (peft)."""

    def __init__(
        self,
        denoiser: VideoDenoiser,
        config: Callable[[], Any],
        averaged: bool = False,
        checkpointing: bool = False,
        rng: torch.Generator | None = None,
    ) -> None:
        """config: makes a LoraConfig; see `Student.lora`."""
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        network = denoiser.network
        if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
            raise ValueError("this denoiser carries adapters already: load the teacher again")
        if checkpointing:
            checkpoint(network)
        self.denoiser = denoiser
        self.averaged = averaged
        network.requires_grad_(False)
        # peft initialises from torch's global generator, which is left as it was; `rng` decides below
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two sets: as meant
            for name in ("student", "target") if averaged else ("student",):
                try:
                    inject_adapter_in_model(config(), network, adapter_name=name)
                except ValueError as error:
                    reason = str(error).strip().splitlines()[0]
                    raise UserError(f"these adapters do not fit the teacher's network: {reason}") from error
        self._layers: list[Any] = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
        for layer in self._layers:
            layer.register_forward_pre_hook(_positional, with_kwargs=True)
        self._student = _adapter(network, "student")
        self._target = _adapter(network, "target")
        for weight in (*self._student.values(), *self._target.values()):
            weight.data = weight.data.float()  # peft follows the base layer: in bfloat16 small updates vanish
        if rng is not None:
            _draw(self._student, rng)
        with torch.no_grad():
            for name, weight in self._target.items():
                weight.copy_(self._student[name])
        network.eval()
        network.requires_grad_(False)
        for weight in self._student.values():
            weight.requires_grad_(True)
        self._activate("student")

    @classmethod
    def read(cls, denoiser: VideoDenoiser, folder: Path) -> LoraStudent:
        """From a peft folder; see `Student.load`."""
        from peft import LoraConfig

        state = stored_adapters(folder)
        layers = {name for name, _ in denoiser.network.named_modules()}
        strange = sorted(name for name in state if name.rsplit(".lora_", 1)[0] not in layers)
        if strange:
            raise UserError(
                f"student {folder}: has adapters for {len(strange)} layer(s) that a "
                f"{type(denoiser.network).__name__} lacks, {strange[0]} among them; expected the teacher "
                "that it was made from"
            )
        new = cls(denoiser, lambda: LoraConfig.from_pretrained(str(folder)))
        new.begin(folder)
        return new

    @torch.no_grad()
    def begin(self, folder: Path) -> None:
        state = stored_adapters(folder)
        check_same(self.trainable(), state, f"student {folder}")
        for own in (self._student, self._target):
            for name, weight in own.items():
                weight.copy_(state[name])

    def merge(self) -> None:
        for layer in self._layers:
            if not layer.merged and layer.get_base_layer().weight.dtype == torch.float32:
                layer.merge(adapter_names=["student"])

    def student(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        return self.denoiser(z, t, text, control)

    def teacher(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        with self._using(None), torch.no_grad():
            return self.denoiser(z, t, text, control)

    def target(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        with self._using("target" if self.averaged else "student"), torch.no_grad():
            return self.denoiser(z, t, text, control)

    def denoisers(self) -> list[VideoDenoiser]:
        return [self.denoiser]

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self._student)

    def averages(self) -> dict[str, nn.Parameter]:
        return dict(self._target)

    def save(self, folder: str | Path, half: bool = False, which: str = "student") -> None:
        weights = self._weights(which)
        config = cast(Any, self.denoiser.network).peft_config["student"].to_dict()
        config |= {"inference_mode": True}
        for key, value in config.items():
            if isinstance(value, set):
                config[key] = sorted(value)  # a set has another order in every process

        def write(into: Path) -> None:
            tensors = {_PEFT_PREFIX + name: stored(weight, half) for name, weight in weights.items()}
            save_file(tensors, into / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            (into / ADAPTER_CONFIG).write_text(
                json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
            )

        place(Path(folder), write, "student")

    @contextmanager
    def _using(self, name: str | None) -> Iterator[None]:
        """The network with this set of adapters (None: bare), then the student again.

        The student must be back before any backward pass: gradient checkpointing runs the layers once more
        then.
        """
        self._activate(name)
        try:
            yield
        finally:
            self._activate("student")

    def _activate(self, name: str | None) -> None:
        # Not peft's set_adapter and enable_adapters: both also turn requires_grad on and off, which would
        # start training the target, and take the student's weights out of a graph that is being built.
        for layer in self._layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]


def stored_adapters(folder: Path) -> dict[str, Tensor]:
    """The weights in a peft folder by the names that `trainable` gives. UserError for other adapters than LoRA, or
    a file that cannot be read."""
    stated = read_json(folder / ADAPTER_CONFIG, f"student {folder}")
    if stated.get("peft_type") != "LORA":
        raise UserError(f"student {folder}: peft_type is {stated.get('peft_type')!r}; expected 'LORA'")
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"student {folder}: cannot read {ADAPTER_WEIGHTS}: {error}") from error
    return {name.removeprefix(_PEFT_PREFIX): weight for name, weight in tensors.items()}


def target_modules(network: nn.Module, targets: str) -> list[str]:
    """The names of the layers that get adapters; see `Student.lora`. UserError on an unknown word or no such
    layer."""
    if targets not in TARGETS:
        raise one_of("adapter targets", targets, TARGETS)
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if targets == "attention":  # diffusers' names, spatial and temporal attention alike
        names = [n for n in names if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    if not names:
        raise UserError(f"adapter targets {targets!r}: a {type(network).__name__} has no such layers")
    return names


def _positional(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Lets an adapted layer be called as layer(input=...), which diffusers' motion modules do with their
    proj_in and proj_out, and which peft's layers, that name their argument x, do not understand."""
    if "input" not in kwargs:
        return None
    return (kwargs["input"], *args), {key: value for key, value in kwargs.items() if key != "input"}


def _adapter(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The weights of one set of adapters, by peft's saved names: without the set's name in them."""
    part = f".{name}."
    found = {}
    for key, weight in network.named_parameters():
        if "lora_" in key and part in f"{key}.":
            found[f"{key}.".replace(part, ".", 1).removesuffix(".")] = weight
    return found


@torch.no_grad()
def _draw(weights: Mapping[str, nn.Parameter], rng: torch.Generator) -> None:
    """peft's own initialisation, from `rng`: the A matrices uniform (He et al. 2015, a = sqrt 5), the B
    zero."""
    for name in sorted(weights):
        weight = weights[name]
        if "lora_A" in name:
            drawn = torch.empty(weight.shape, device=rng.device)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=rng)
            weight.copy_(drawn)
