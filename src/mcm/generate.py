"""Videos from a student or a teacher: card -> model -> text -> a seed of its own per video -> sampler -> codec.

A video depends on its prompt, its seed and the settings alone, never on the others of its batch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcm.card import CARD, StudentCard, card_path
from mcm.data.open import open_pose
from mcm.data.poses import Poses
from mcm.data.video import write_video
from mcm.diffusion.paths import Denoised, path_from_config
from mcm.driving import is_film, poses_of_film
from mcm.errors import UserError
from mcm.models.control import FrameControl, load_controlnet
from mcm.models.fingerprint import fingerprint
from mcm.models.guidance import guided
from mcm.models.official import find_official, load_official
from mcm.models.student import Student
from mcm.models.video import TextEmbedding, VideoModel, load_video_model
from mcm.output import write_json
from mcm.samplers import sampler as sampler_named
from mcm.samplers import samplers
from mcm.samplers.base import Sampler
from mcm.samplers.loop import Step, sample

TEACHER_STEPS, STUDENT_STEPS = 25, 4


@dataclass(frozen=True)
class Video:
    """One generated video: frames uint8 (T, H, W, 3), and everything that made it in `settings`."""

    prompt: str
    seed: int
    frames: np.ndarray
    fps: float
    settings: dict[str, Any] = field(default_factory=dict)


class Maker:
    """A teacher or a student, loaded once and ready to sample.

    card: the student's card, None for a teacher. Build one with `load_maker`.
    """

    def __init__(self, model: VideoModel, name: str, student: Student | None = None, card: StudentCard | None = None):
        self.model, self.name, self.student, self.card = model, name, student, card
        if card is not None:
            model.path = model.denoiser.path = path_from_config(card.scheduler)

    @property
    def default_steps(self) -> int:
        return TEACHER_STEPS if self.card is None else STUDENT_STEPS

    @property
    def frames(self) -> int:
        return self.model.frames if self.card is None else self.card.frames

    @property
    def size(self) -> tuple[int, int]:
        return self.model.size if self.card is None else self.card.size

    @property
    def fps(self) -> float:
        return self.model.fps if self.card is None else self.card.fps

    def sampler(self, name: str | None = None) -> Sampler:
        """The sampler asked for, or the student's own (from its card), or DPM++ for a teacher.

        Raises:
            UserError: for an unknown sampler, or one that neither is the student's own nor stands in for it.
        """
        if self.card is None:
            return sampler_named(name or "dpm++")
        own, settings = str(self.card.sampler["name"]), self.card.sampler_settings()
        if name in (None, own):
            return sampler_named(own, **settings)
        others = {kind.name: kind for kind in samplers().values() if kind.stands_in_for == own}
        if name not in others:
            instead = "".join(f", or take {other!r}" for other in others)
            raise UserError(
                f"the student {self.name} was made for the sampler {own!r} and cannot be sampled with {name!r}; "
                f"leave --sampler out{instead}"
            )
        known = {field.name for field in fields(others[name])}
        return sampler_named(name, **{key: value for key, value in settings.items() if key in known})

    def guidance(self, scale: float | None = None) -> float:
        """The guidance scale asked for, or the model's usual one (1, none, for a student)."""
        if scale is not None:
            return scale
        return self.model.guidance_scale if self.card is None else self.card.guidance_scale

    def geometry(self, frames: int | None, size: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
        """Frames and size (H, W) asked for, or the model's own."""
        return self.frames if frames is None else frames, self.size if size is None else size

    @torch.no_grad()
    def latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        watch: Callable[[Step], None] | None = None,
        control: FrameControl | None = None,
    ) -> Tensor:
        """One batch of clean latents (B, C, T, h, w), a seed for each prompt; `control` steers all or each.

        watch: called after each step of the sampler.
        """
        shape = self.model.latent_shape(*self.geometry(frames, size))
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        device = next(self.model.denoiser.parameters()).device
        noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(device)
        text = self.model.text(list(prompts))
        denoise = self._denoise(text, self.guidance(guidance_scale), control)
        return sample(denoise, self.model.path, self.sampler(sampler), noise, steps, rngs, watch)

    def _denoise(
        self, text: TextEmbedding, scale: float, control: FrameControl | None
    ) -> Callable[[Tensor, Tensor], Denoised]:
        """What the sampler asks: the student where there is one, guided where the scale is not 1 (no guidance)."""
        network = self.model.denoiser if self.student is None else self.student
        network = network if control is None else control.steer(network)
        if scale == 1.0:
            return lambda z, t: network(z, t, text)
        empty = self.model.text([""])
        return lambda z, t: guided(network, z, t, text, empty, scale)

    def controlnet(self, name: str | Path | None = None) -> str | Path | None:
        """The ControlNet for poses asked for, or the one that the zoo has for this teacher; None without one."""
        from mcm.pocket import zoo

        return zoo.CONTROLNETS.get(self.model.name) if name is None else name

    def control(
        self,
        pose: str | Path | Poses,
        controlnet: str | Path | None = None,
        scale: float = 1.0,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        pose_network: str | Path | None = None,
        pose_detector: str | Path | None = None,
    ) -> FrameControl:
        """Steers videos of `frames` and `size` by poses; see `generate`.

        Raises:
            UserError: for poses that cannot be read, or a ControlNet that is missing or does not fit the teacher.
        """
        if not 0 <= scale < math.inf:
            raise UserError(f"pose scale {scale}: expected a number of at least 0 (0 is no control, 1 the usual)")
        network = load_controlnet(self.controlnet(controlnet), self.model)
        count, shape = self.geometry(frames, size)
        if is_film(pose):
            device = next(self.model.denoiser.parameters()).device
            pose = poses_of_film(str(pose), count, pose_network, pose_detector, device)
        elif (pose_network, pose_detector) != (None, None):
            named = "of keypoints" if isinstance(pose, Poses) else pose
            raise UserError(f"pose {named}: is no film, which pose_network and pose_detector are for; leave them out")
        return FrameControl(network, open_pose(pose, count, shape)[None], scale)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, T, h, w) -> video (B, 3, T, H, W), clipped to [-1, 1]."""
        return self.model.codec.decode(z).clamp(-1, 1)

    @torch.no_grad()
    def glimpse(self, z: Tensor, count: int = 4) -> np.ndarray:
        """Some frames of the first clip of latents (B, C, T, h, w), evenly spread, uint8 (N, H, W, 3).

        count: at most so many. For looking at a `Step`'s x0, which costs less than to decode it whole.
        """
        frames = self.model.codec.pixel_frames(z.shape[2])
        index = torch.linspace(0, frames - 1, min(count, frames)).round().long()
        return _bytes(self.model.codec.decode_frames(z[:1], index[None]).clamp(-1, 1))


def load_maker(model: str | Path, device: torch.device | str = "cpu") -> Maker:
    """A student's folder (or a run's, or a card), a shipped student's name, official weights ("REPO:SUBFOLDER" or a
    folder of them), or a teacher's name or folder.

    Raises:
        UserError: where nothing is found, or the teacher is not the one that the card names.
    """
    from mcm.pocket import zoo

    place = zoo.find(str(model)) or Path(model).expanduser()
    is_student = place.is_file() or (place / CARD).is_file() or (place / "student" / CARD).is_file()
    if not is_student:
        official = find_official(place)
        if official is None:
            return Maker(load_video_model(model, device), str(model))
        teacher, card = load_official(official, device)
        return Maker(teacher, str(model), _sampled(teacher, official), card)
    path = card_path(place)
    card = StudentCard.load(path)
    teacher = load_video_model(card.teacher.name, device)
    if fingerprint(teacher.denoiser.network) != card.teacher.fingerprint:
        raise UserError(
            f"the student {path.parent} was made from another {card.teacher.name} than the one here (its network "
            "differs): put the right teacher's folder there, or distil again"
        )
    return Maker(teacher, str(model), _sampled(teacher, path.parent), card)


def _sampled(teacher: VideoModel, folder: Path) -> Student:
    student = Student.load(teacher.denoiser, folder)
    student.merge()
    return student


def pair_seeds(prompts: Sequence[str], seeds: Sequence[int]) -> list[int]:
    """A seed for every prompt: as given, or counted on from a single one.

    Raises:
        UserError: when there are neither one nor as many seeds as prompts, or a seed is out of range.
    """
    if len(seeds) == 1:
        seeds = [seeds[0] + i for i in range(len(prompts))]
    if len(seeds) != len(prompts):
        raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one seed, or one for each prompt")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed}: expected whole numbers from 0 to 2^63 - 1")
    return list(seeds)


def generate(
    model: str | Path | Maker,
    prompts: str | Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    sampler: str | None = None,
    guidance_scale: float | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    pose: str | Path | Poses | None = None,
    controlnet: str | Path | None = None,
    pose_scale: float = 1.0,
    pose_network: str | Path | None = None,
    pose_detector: str | Path | None = None,
    batch: int = 4,
    device: torch.device | str = "cpu",
    watch: Callable[[Step], None] | None = None,
) -> Iterator[Video]:
    """Make a video for every prompt.

    Args:
        model: what `load_maker` takes, or a loaded `Maker`.
        prompts: one, or a list.
        seeds: one for each prompt, or one to count on from.
        steps: default 4 for a student, 25 for a teacher.
        sampler: a teacher's sampler ("dpm++", "ddim", ...); a student has its own, and "tcd" in its place.
        guidance_scale: in diffusers' convention; default the model's own.
        frames: of a video; default the model's own.
        size: height and width in pixels; default the model's own.
        pose: what the person does, in every video: what `open_pose` takes, an OpenPose JSON for instance, or a film of
            somebody who does it. Stretched over the video's frames.
        controlnet: the ControlNetModel that makes videos follow the pose, a folder, a pocket name or a hub id; default
            the one that the zoo has for its own teacher.
        pose_scale: how much, diffusers' controlnet_conditioning_scale; 0 is no control.
        pose_network, pose_detector: what reads poses from a film; see `mcm.driving.poses_of_film`.
        batch: videos at a time; the result does not depend on it.
        watch: called after each step of the sampler, for each batch anew; what it raises stops the work there.

    Raises:
        UserError: for settings that the model cannot take, before anything is made.
    """
    maker = model if isinstance(model, Maker) else load_maker(model, device)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    steps = maker.default_steps if steps is None else steps
    seeds = pair_seeds(prompts, seeds)
    maker.sampler(sampler).times(maker.model.path, steps)  # refuses wrong settings early
    maker.model.latent_shape(*maker.geometry(frames, size))
    if batch < 1:
        raise UserError(f"batch {batch}: expected at least 1")
    control, posed = None, {}
    if pose is not None:
        control = maker.control(pose, controlnet, pose_scale, frames, size, pose_network, pose_detector)
        told = pose.to_json() if isinstance(pose, Poses) else str(pose)
        posed = {"pose": told, "controlnet": str(maker.controlnet(controlnet)), "pose_scale": pose_scale}
        read = {"pose_network": pose_network, "pose_detector": pose_detector}
        posed |= {name: str(value) for name, value in read.items() if value is not None}
    elif controlnet is not None:
        raise UserError(f"controlnet {controlnet}: there is no pose for it to follow; give one, or leave it out")
    return _videos(maker, prompts, seeds, steps, sampler, guidance_scale, frames, size, batch, control, posed, watch)


def _videos(
    maker: Maker, prompts: list[str], seeds: list[int], steps: int, sampler: str | None, guidance: float | None,
    frames: int | None, size: tuple[int, int] | None, batch: int, control: FrameControl | None, posed: dict[str, Any],
    watch: Callable[[Step], None] | None,
) -> Iterator[Video]:  # fmt: skip
    for start in range(0, len(prompts), batch):
        said, numbers = prompts[start : start + batch], seeds[start : start + batch]
        z = maker.latents(said, numbers, steps, sampler, guidance, frames, size, watch, control)
        pixels = _bytes(maker.decode(z))
        for prompt, seed, video in zip(said, numbers, pixels, strict=True):
            settings = {
                "model": maker.name, "prompt": prompt, "seed": seed, "steps": steps,
                "sampler": maker.sampler(sampler).name, "guidance_scale": maker.guidance(guidance),
                "frames": len(video), "size": list(video.shape[1:3]), "fps": maker.fps, **posed,
            }  # fmt: skip
            yield Video(prompt, seed, video, maker.fps, settings)


def _bytes(pixels: Tensor) -> np.ndarray:
    """(B, 3, ...) in [-1, 1] -> uint8 (B, ..., 3)."""
    return pixels.movedim(1, -1).add(1).mul(127.5).round().to(torch.uint8).cpu().numpy()


def save_video(video: Video, folder: str | Path, format: str = "mp4") -> Path:  # noqa: A002 (the option's name)
    """Write a video and, beside it, a JSON of what made it. Returns the video's path."""
    words = "-".join("".join(c if c.isalnum() else " " for c in video.prompt.lower()).split())
    if len(words) > 60:  # long prompts that begin alike get names of their own
        words = f"{words[:51]}-{hashlib.sha256(video.prompt.encode()).hexdigest()[:8]}"
    path = Path(folder) / f"{words or 'video'}-{video.seed}.{format}"
    write_video(path, video.frames, video.fps)
    write_json(path.with_suffix(".json"), json.loads(json.dumps(video.settings)))
    return path
