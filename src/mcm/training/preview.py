"""Previews: the student beside its teacher, same prompts and seeds, while it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mcm.data.video import contact_sheet
from mcm.diffusion.paths import Denoised
from mcm.diffusion.solvers import guide
from mcm.evaluation.motion import motion_magnitude
from mcm.methods.base import Batch, Method, Players, teacher_halves
from mcm.samplers.dpmpp import DPMpp
from mcm.samplers.loop import sample


class Previews:
    """Writes `update-0000100.png` (rows: prompts; columns: teacher, student) and tells the motion ratio.

    The teacher's videos are made once; the student's with `steps` steps from the same noise.
    """

    def __init__(
        self, method: Method, players: Players, prompts: list[str], folder: Path, shape: tuple[int, int, int, int],
        steps: int = 4, seed: int = 2024,
    ) -> None:  # fmt: skip
        self.method, self.players, self.prompts, self.folder = method, players, prompts, folder
        self.steps, self.seed = steps, seed
        rngs = self._rngs()
        self.noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs])
        self._teacher: Tensor | None = None

    def __call__(self, update: int) -> float:
        """Write the sheet of this update; returns the motion ratio, student / teacher."""
        if self._teacher is None:
            self._teacher = self._made(self._guided(), DPMpp(), 25)
        text = self.players.model.text(self.prompts)
        student = self._made(
            lambda z, t: self.players.student.student(z, t, text), self.method.sampler(), self.steps
        )
        names = [f"teacher, {25} steps", f"student, {self.steps} steps"]
        pairs = [list(pair) for pair in zip(_pixels(self._teacher), _pixels(student), strict=True)]
        contact_sheet(self.folder / f"update-{update:07d}.png", pairs, self.prompts, names)
        still = float(motion_magnitude(self._teacher).mean())
        return float(motion_magnitude(student).mean()) / still if still > 0 else float("nan")

    def _rngs(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(self.seed + i) for i in range(len(self.prompts))]

    def _guided(self) -> Callable[[Tensor, Tensor], Denoised]:
        model = self.players.model
        batch = Batch(self.noise, model.text(self.prompts), model.text([""]))

        def denoise(z: Tensor, t: Tensor) -> Denoised:
            cond, uncond = teacher_halves(self.players.student, z, t, batch)
            return guide(cond, uncond, model.guidance_scale)

        return denoise

    @torch.no_grad()
    def _made(self, denoise: Callable[[Tensor, Tensor], Denoised], sampler, steps: int) -> Tensor:
        model = self.players.model
        noise = self.noise.to(next(model.denoiser.parameters()).device)
        return model.codec.decode(sample(denoise, model.path, sampler, noise, steps, self._rngs())).clamp(-1, 1).cpu()


def _pixels(video: Tensor) -> list:
    return list(video.permute(0, 2, 3, 4, 1).add(1).mul(127.5).round().to(torch.uint8).numpy())
