"""What every sampler is: a schedule of times and a rule that steps from one to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mcm.diffusion.grid import SolverGrid
from mcm.diffusion.paths import Denoised, NoisePath
from mcm.errors import UserError

Rng = torch.Generator | Sequence[torch.Generator]


@dataclass(frozen=True)
class Sampler(ABC):
    """A sampler's settings are its fields; what a run remembers between steps lies in its own `memory`."""

    name: ClassVar[str]
    # The sampler whose students this one samples as well, with those of their card's settings that it knows.
    stands_in_for: ClassVar[str | None] = None
    # The same settings in diffusers: its class, its keys by our fields, and the values we cannot do without.
    diffusers_class: ClassVar[str]
    diffusers_keys: ClassVar[Mapping[str, str]] = {}
    diffusers_needs: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def times(self, path: NoisePath, steps: int) -> Tensor:
        """The times of a run of `steps` steps, descending, (steps + 1,); the last is where the run ends.

        Whole numbers (long) on a variance-preserving path, float32 on a rectified flow. Raises UserError
        where the path or the number of steps does not suit the sampler.
        """

    @abstractmethod
    def step(
        self,
        path: NoisePath,
        denoised: Denoised,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        memory: dict[str, Any],
        rng: Rng,
    ) -> Tensor:
        """From z (B, ...) at t (B,), with the denoiser's word on it, to the latents at s (B,). -> (B, ...)

        memory: a dictionary, empty at the start of a run, for the sampler's own use. rng: see `noise_like`.
        """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The sampler that acts as diffusers' scheduler with this configuration does.

        Settings that the configuration lacks keep our defaults. Raises UserError where it asks for something
        that this sampler does not do (clipping, say), rather than sampling otherwise than the teacher's
        authors meant.
        """
        for key, needed in cls.diffusers_needs.items():
            if key in config and config[key] != needed:
                raise UserError(
                    f"scheduler config: sampler {cls.name!r} needs {key} {needed!r}, not {config[key]!r}"
                )
        return cls(**{field: config[key] for field, key in cls.diffusers_keys.items() if key in config})

    def to_config(self) -> dict[str, Any]:
        """The settings in diffusers' words, with `_class_name`; the noise path's keys are not among them."""
        settings = {key: getattr(self, field) for field, key in self.diffusers_keys.items()}
        return {"_class_name": self.diffusers_class, **self.diffusers_needs, **settings}


def check_steps(steps: int, most: int, name: str) -> None:
    """Raises UserError unless 1 <= steps <= most."""
    if not 1 <= steps <= most:
        raise UserError(f"sampler {name!r}: expected 1 to {most} steps, got {steps}")


def trailing(num_timesteps: int, steps: int) -> Tensor:
    """`steps` times counted back from the last one, descending, (steps,) long (arXiv 2305.08891, table 2)."""
    even = num_timesteps - torch.arange(steps, dtype=torch.float64) * (num_timesteps / steps)
    return even.round().long() - 1


def of_grid(path: NoisePath, original_steps: int, steps: int, name: str) -> Tensor:
    """`steps` of the `original_steps` times of a solver grid, evenly from the noisiest on, descending, (steps,): LCM's
    (arXiv 2310.04378). 999 | 999, 499 | 999, 759, 499, 259 for 1, 2 and 4 steps of 50."""
    check_steps(steps, original_steps, name)
    even = torch.arange(steps, dtype=torch.float64) * (original_steps / steps)
    return SolverGrid(path, original_steps).timesteps.flip(0)[even.floor().long()]


def ending(times: Tensor, last: float) -> Tensor:
    """`times` (steps,) with the end of the run appended, (steps + 1,)."""
    return torch.cat([times, times.new_tensor([last])])


def noise_like(z: Tensor, rng: Rng) -> Tensor:
    """Standard normal noise of the shape, dtype and device of z (B, ...).

    rng: one generator for the whole batch, or a list of one a clip, so that a clip does not depend on its
    neighbours in the batch. The noise is drawn on the generator's device, in z's dtype, as diffusers does.
    """
    if isinstance(rng, torch.Generator):
        return torch.randn(z.shape, generator=rng, device=rng.device, dtype=z.dtype).to(z.device)
    if len(rng) != z.shape[0]:
        raise ValueError(f"expected one generator a clip, {z.shape[0]} of them, got {len(rng)}")
    rows = [
        torch.randn(z.shape[1:], generator=one, device=one.device, dtype=z.dtype).to(z.device) for one in rng
    ]
    return torch.stack(rows)
