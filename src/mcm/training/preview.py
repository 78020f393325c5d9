"""Previews: the student beside its teacher, same prompts and seeds, while it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mcm.data.video import contact_sheet
from mcm.diffusion.paths import Denoised
from mcm.evaluation.motion import motion_magnitude
from mcm.methods.base import Method, Players
from mcm.models.guidance import guided
from mcm.samplers.dpmpp import DPMpp
from mcm.samplers.loop import sample

TEACHER_STEPS = 25  # of DPM++


class Previews:
    """Writes `update-0000100.png` (rows: prompts; columns: teacher, student) and compares student and teacher.

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

    def __call__(self, update: int) -> dict[str, float]:
        """Write the sheet of this update; returns what `compared` does."""
        model, player = self.players.model, self.players.student
        text = model.text(self.prompts)
        if self._teacher is None:
            empty, scale = model.text([""]), model.guidance_scale
            self._teacher = self._made(
                lambda z, t: guided(player.teacher, z, t, text, empty, scale), DPMpp(), TEACHER_STEPS
            )
        student = self._made(lambda z, t: player.student(z, t, text), self.method.sampler(), self.steps)
        names = [f"teacher, {TEACHER_STEPS} steps", f"student, {self.steps} steps"]
        pairs = [list(pair) for pair in zip(_pixels(self._teacher), _pixels(student), strict=True)]
        contact_sheet(self.folder / f"update-{update:07d}.png", pairs, self.prompts, names)
        return compared(student, self._teacher)

    def _rngs(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(self.seed + i) for i in range(len(self.prompts))]

    @torch.no_grad()
    def _made(self, denoise: Callable[[Tensor, Tensor], Denoised], sampler, steps: int) -> Tensor:
        model = self.players.model
        noise = self.noise.to(next(model.denoiser.parameters()).device)
        return model.codec.decode(sample(denoise, model.path, sampler, noise, steps, self._rngs())).clamp(-1, 1).cpu()


def compared(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """The student's videos beside the teacher's of the same seeds, both (B, 3, T, H, W) in [-1, 1].

    "motion ratio": mean optical flow, student / teacher; left out where the teacher stands still. "health/brightness
    drift" and "health/saturation drift": student - teacher, means over all pixels of luma (BT.601) and of HSV's chroma,
    the largest channel less the smallest, each in [0, 1].
    """
    drifts = [new - old for new, old in zip(_look(student), _look(teacher), strict=True)]
    found = {"health/brightness drift": drifts[0], "health/saturation drift": drifts[1]}
    moved = float(motion_magnitude(teacher).mean())
    return {"motion ratio": float(motion_magnitude(student).mean()) / moved, **found} if moved > 0 else found


def _look(videos: Tensor) -> tuple[float, float]:
    colours = (videos.float() + 1) / 2
    luma = torch.einsum("bcthw,c->bthw", colours, colours.new_tensor([0.299, 0.587, 0.114]))
    return float(luma.mean()), float((colours.amax(dim=1) - colours.amin(dim=1)).mean())


def _pixels(video: Tensor) -> list:
    return list(video.permute(0, 2, 3, 4, 1).add(1).mul(127.5).round().to(torch.uint8).numpy())
