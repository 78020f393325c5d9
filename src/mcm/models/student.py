"""The student: trainable weights on a teacher's network, with the teacher and the averaged target at hand.

Two kinds. `LoraStudent` (the default): low-rank adapters (arXiv 2106.09685) on the one copy of the teacher's
weights; adapters off is the teacher, a second set of adapters the averaged target. `FullStudent`: a trainable
copy.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mcm.diffusion.paths import Denoised
from mcm.errors import UserError, one_of
from mcm.models.checkpointing import checkpoint
from mcm.models.folders import load_network, place, read_json
from mcm.models.video import Control, TextEmbedding, VideoDenoiser

if TYPE_CHECKING:
    from mcm.models.adapters import LoraStudent

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Student(ABC):
    """Three denoisers over one teacher: `student` learns, `teacher` never changes, `target` trails the
    student.

    All take z (B, C, T, h, w), t (B,) and text as `VideoDenoiser` does. Calling the object is calling
    `student`. Only the student's weights require gradients. averaged: whether a target of its own exists;
    without one, the target is the student as it is, without gradients.
    """

    averaged: bool

    @staticmethod
    def lora(
        denoiser: VideoDenoiser,
        rank: int = 64,
        alpha: float = 64,
        targets: str = "all",
        averaged: bool = False,
        checkpointing: bool = False,
        rng: torch.Generator | None = None,
    ) -> LoraStudent:
        """Adapters on `denoiser`, which is changed in place: called as it is, it is the student from now on.

        targets: "all" (every linear and 2-D convolution, as the paper; 3-D convolutions stay as they are) or
        "attention" (the projections of the attention layers). checkpointing: recompute activations in the
        backward pass. rng: draws the initial weights; the student begins as the teacher whatever it draws.
        UserError on a setting that the network cannot take.
        """
        from peft import LoraConfig

        from mcm.models.adapters import LoraStudent, target_modules

        if rank < 1 or alpha <= 0:
            raise UserError(
                f"lora rank {rank}, alpha {alpha}: expected a rank of at least 1 and an alpha above 0"
            )
        names = target_modules(denoiser.network, targets)

        def config() -> Any:  # one for each set of adapters: peft writes into it
            return LoraConfig(
                r=rank, lora_alpha=cast(int, alpha), target_modules=list(names), lora_dropout=0.0
            )

        return LoraStudent(denoiser, config, averaged, checkpointing, rng)

    @staticmethod
    def full(denoiser: VideoDenoiser, averaged: bool = False, checkpointing: bool = False) -> FullStudent:
        """A trainable copy of all weights (and another one for the target); `denoiser` stays the frozen
        teacher."""
        return FullStudent(denoiser, averaged, checkpointing)

    @staticmethod
    def load(denoiser: VideoDenoiser, folder: str | Path) -> Student:
        """What `save` wrote, or any peft LoRA folder, on the teacher that it was made from.

        UserError where the folder holds neither kind, or weights that do not fit.
        """
        from mcm.models.adapters import LoraStudent

        folder = Path(folder)
        if (folder / ADAPTER_CONFIG).is_file():
            return LoraStudent.read(denoiser, folder)
        if (folder / "config.json").is_file():
            return FullStudent.read(denoiser, folder)
        raise UserError(
            f"student {folder}: expected {ADAPTER_CONFIG} with {ADAPTER_WEIGHTS} (adapters), or config.json "
            "with weights (a whole network); found neither"
        )

    def __call__(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        return self.student(z, t, text, control)

    @abstractmethod
    def student(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        """The student's estimates, with gradients."""

    @abstractmethod
    def teacher(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        """The untouched teacher's estimates, to the bit; no gradients."""

    @abstractmethod
    def target(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        """The averaged student's estimates, or the student's where nothing is averaged; no gradients."""

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """The student's weights by stable names."""

    @abstractmethod
    def averages(self) -> dict[str, nn.Parameter]:
        """The target's weights by the same names; empty where nothing is averaged."""

    @abstractmethod
    def save(self, folder: str | Path, half: bool = False, which: str = "student") -> None:
        """Writes the weights of `which`, "student" or "target", into `folder`, beside whatever lies there.

        half: stored in float16. Every file appears whole or not at all. UserError where it cannot be written.
        """

    @abstractmethod
    def begin(self, folder: Path) -> None:
        """Start, the target as well, from weights that `save` wrote. UserError where they are of another kind, rank
        or network."""

    def merge(self) -> None:
        """Make sampling as fast as the teacher's: adapters are folded into the weights that they act on.

        For students that are only sampled from then on: they neither train nor tell what the teacher says. Weights of
        less than float32 keep their adapters beside them, for small updates vanish in them.
        """
        return

    @abstractmethod
    def denoisers(self) -> list[VideoDenoiser]:
        """Every denoiser that the three are made of, the one that names the weights first."""

    @contextmanager
    def pictures(self) -> Iterator[None]:
        """Inside, all three are the picture models that they were built on; see `VideoDenoiser.pictures`."""
        with ExitStack() as stack:
            for denoiser in self.denoisers():
                stack.enter_context(denoiser.pictures())
            yield

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """target = decay * target + (1 - decay) * student. ValueError where nothing is averaged."""
        target = self.averages()
        if not target:
            raise ValueError("this student was made without a target of its own (averaged=False)")
        for name, weight in self.trainable().items():
            target[name].lerp_(weight.to(target[name].dtype), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that training changes: "student.NAME" and, where averaged, "target.NAME"."""
        kept = {f"student.{name}": weight.detach() for name, weight in self.trainable().items()}
        return kept | {f"target.{name}": weight.detach() for name, weight in self.averages().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What `state_dict` gave, to the bit. UserError where names or shapes differ."""
        own = self.state_dict()
        check_same(own, state, "checkpoint")
        for name, weight in own.items():
            weight.copy_(state[name])

    def _weights(self, which: str) -> dict[str, nn.Parameter]:
        if which not in ("student", "target"):
            raise one_of("weights", which, ("student", "target"))
        return self.averages() if which == "target" and self.averaged else self.trainable()


class FullStudent(Student):
    """A trainable copy of the teacher's network."""

    def __init__(self, denoiser: VideoDenoiser, averaged: bool = False, checkpointing: bool = False) -> None:
        if not hasattr(denoiser.network, "save_config"):  # more than one diffusers network
            raise UserError(
                f"a full student cannot be made of the teacher's {type(denoiser.network).__name__} network, which is "
                'several: train adapters (student.kind "lora")'
            )
        self.denoiser = denoiser
        self.averaged = averaged
        denoiser.network.requires_grad_(False)
        self.copy = copy.deepcopy(denoiser)
        self.trailing = copy.deepcopy(denoiser) if averaged else None
        self.copy.network.requires_grad_(True)
        if checkpointing:
            checkpoint(self.copy.network)

    @classmethod
    def read(cls, denoiser: VideoDenoiser, folder: Path) -> FullStudent:
        """From a diffusers folder of the network alone; see `Student.load`."""
        new = cls(denoiser)
        new.begin(folder)
        return new

    @torch.no_grad()
    def begin(self, folder: Path) -> None:
        kind = type(self.denoiser.network)
        stated = read_json(folder / "config.json", f"student {folder}").get("_class_name")
        if stated != kind.__name__:
            raise UserError(f"student {folder}: holds a {stated}; its teacher's network is a {kind.__name__}")
        state = dict(load_network(kind, folder, next(self.denoiser.parameters()).dtype).named_parameters())
        check_same(self.trainable(), state, f"student {folder}")
        for own in (self.trainable(), self.averages()):
            for name, weight in own.items():
                weight.copy_(state[name])

    def student(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        return self.copy(z, t, text, control)

    def teacher(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        with torch.no_grad():
            return self.denoiser(z, t, text, control)

    def target(self, z: Tensor, t: Tensor, text: TextEmbedding, control: Control | None = None) -> Denoised:
        with torch.no_grad():
            return (self.trailing or self.copy)(z, t, text, control)

    def denoisers(self) -> list[VideoDenoiser]:
        return [d for d in (self.copy, self.denoiser, self.trailing) if d is not None]

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.copy.network.named_parameters())

    def averages(self) -> dict[str, nn.Parameter]:
        return dict(self.trailing.network.named_parameters()) if self.trailing is not None else {}

    def save(self, folder: str | Path, half: bool = False, which: str = "student") -> None:
        weights = self._weights(which)
        # The teacher's, not the copy's: they say the same, and FSDP2 gives the copy's class another name and divides it
        # again where its state is asked for.
        network = cast(Any, self.denoiser.network)
        whole = {**network.state_dict(), **weights}  # buffers too: diffusers expects its tables of positions

        def write(into: Path) -> None:
            tensors = {name: stored(weight, half) for name, weight in whole.items()}
            save_file(tensors, into / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
            network.save_config(into)

        place(Path(folder), write, "student")


def stored(weight: Tensor, half: bool) -> Tensor:
    """A copy for a file, on the CPU, in float16 where half."""
    weight = weight.detach().cpu().contiguous()
    return weight.half() if half else weight.clone()


def check_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """UserError naming the first weight that is missing, unknown or of another shape."""
    for name in [*own, *given]:
        if name not in given or name not in own:
            side = "lacks" if name in own else "has, unlike this network,"
            raise UserError(f"{what}: {side} the weight {name}; expected the same teacher and settings")
        if own[name].shape != given[name].shape:
            raise UserError(
                f"{what}: {name} has shape {tuple(given[name].shape)}; expected {tuple(own[name].shape)}: "
                "the same teacher and rank"
            )
