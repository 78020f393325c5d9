"""Distillation: recipe -> model + data + method -> trainer -> card.

The folder of a run: recipe.yaml (resolved), sources.json (what the data were, and what was left out and why), cache/
(encoded clips), checkpoints/, previews/, log.jsonl, tensorboard/, and at the end student/ with its card.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mcm.card import Provenance, StudentCard, Teacher, Weights, card_path
from mcm.data.cache import LatentSet
from mcm.data.open import PictureSource, open_pictures, open_videos
from mcm.data.report import SourceReport
from mcm.data.sources import Clip, Prompts
from mcm.data.stream import Stream
from mcm.errors import UserError
from mcm.evaluation.report import provenance
from mcm.methods.base import Method, Players
from mcm.models.discriminator import FrameDiscriminator
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.features import FrozenFeatures
from mcm.models.fingerprint import fingerprint
from mcm.models.student import Student
from mcm.models.video import VideoModel, load_video_model
from mcm.motion import motion_representation
from mcm.output import Progress, silent, whole, write_json
from mcm.recipe import Recipe
from mcm.training.average import PowerAverage
from mcm.training.device import autocast, chosen_device
from mcm.training.health import Watch
from mcm.training.log import RunLog
from mcm.training.material import Material
from mcm.training.preview import Previews
from mcm.training.trainer import Plan, Schedule, Trainer, saved_updates

TEACHER_CLIPS = 256  # what the teacher makes itself where there are prompts alone


def distill(
    recipe: Recipe | str, out: str | Path, progress: Progress = silent, cache: str | Path | None = None
) -> StudentCard:
    """Make a student.

    The same call again goes on from the last checkpoint; a finished run's card is returned as it is.

    Args:
        recipe: a recipe, or the name or file of one.
        out: the run's folder; it may hold this very run, but no other.
        cache: where encoded clips are kept, for several runs to share; default in the run's folder.

    Raises:
        UserError: for data, settings or places that cannot be used; before anything slow where that can be known.
    """
    if isinstance(recipe, str):
        from mcm.recipes import load_recipe

        recipe = load_recipe(recipe)
    out = Path(out).expanduser()
    recipe.may_use(out)
    student_folder = out / "student"
    if (student_folder / "card.json").exists():
        return StudentCard.load(student_folder)

    progress("loading the teacher", 0, 0)
    device = chosen_device()
    autocast(device, recipe.training.precision)  # refuses a precision that the device cannot take
    model = load_video_model(recipe.teacher, device)
    teacher_mark = fingerprint(model.denoiser.network)
    start = _start(recipe, teacher_mark)
    method = recipe.method.build()
    method.check(model)
    frames, size = recipe.data.frames or model.frames, recipe.data.size or model.size
    model.check_geometry(frames, size)
    cache = out / "cache" if cache is None else Path(cache)
    clips, pictures, reports = material(recipe, model, frames, size, cache, progress)
    if len(clips) < recipe.training.batch:
        raise UserError(
            f"training.batch is {recipe.training.batch}, but there are only {len(clips)} clips: give more videos or a "
            "smaller batch (--training.batch)"
        )

    recipe.claim(out)  # from here on the folder is this run's
    if not (out / "sources.json").exists():  # a run that goes on from its cache has not looked at the films again
        write_json(out / "sources.json", [report.as_dict() for report in reports])
    if recipe.data.cache and not LatentSet.exists(cache):
        clips.save(cache)  # after the report, so that no kill can leave a cache without one

    players = _players(recipe, model, method, start)
    real = method.frames_picked if method.adversary != "none" else 0
    shape = model.latent_shape(frames, size)
    previews = None
    if recipe.training.preview_every:
        prompts = list(recipe.training.preview_prompts or dict.fromkeys(clips.captions))[:4]
        previews = Previews(method, players, prompts, out / "previews", shape)
    log = RunLog(out, saved_updates(out / "checkpoints"))
    watch = Watch(recipe, log, previews, device)
    width = recipe.training.average
    average = None if width is None else PowerAverage(players.student.trainable(), width)
    trainer = Trainer(
        method, players, Material(clips, model.text, pictures, real, device),
        Stream(len(clips), recipe.training.batch, recipe.training.seed),
        *_optimizers(recipe, method, players), _plan(recipe, device), out / "checkpoints", watch.numbers,
        watch.after, progress, watch.line, watch.rolled_back, average,
    )  # fmt: skip
    trainer.run()
    log.close()
    if average is not None:
        average.hand_over()
    return _finish(recipe, teacher_mark, model, method, players, frames, size, student_folder)


def _start(recipe: Recipe, teacher_mark: str) -> Path | None:
    """The folder of the weights to go on from; UserError where they are another teacher's."""
    if recipe.student.start is None:
        return None
    path = card_path(recipe.student.start)
    if StudentCard.load(path).teacher.fingerprint != teacher_mark:
        raise UserError(
            f"student.start: the student {path.parent} was made from another teacher than {recipe.teacher}; expected "
            "one of the same teacher"
        )
    return path.parent


def _players(recipe: Recipe, model: VideoModel, method: Method, start: Path | None) -> Players:
    rng = torch.Generator().manual_seed(recipe.training.seed)
    discriminator: FrameDiscriminator | EncoderDiscriminator | None = None
    if method.judge == "encoder":  # of the bare teacher, before there are adapters in it
        discriminator = EncoderDiscriminator.of(model.denoiser, rng)
    averaged = method.target_decay is not None
    if recipe.student.kind == "lora":
        student: Student = Student.lora(
            model.denoiser, recipe.student.rank, recipe.student.alpha, recipe.student.targets, averaged, rng=rng
        )
    else:
        student = Student.full(model.denoiser, averaged)
    if start is not None:
        student.begin(start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        motion = motion_representation(method.motion, model.codec.channels)
    motion.to(next(model.denoiser.parameters()).device)
    if method.adversary != "none":
        features = FrozenFeatures.load(recipe.discriminator.backbone)
        discriminator = FrameDiscriminator(
            features,
            model.text.width,
            recipe.discriminator.head_width,
            augment=recipe.discriminator.augmentation,
            rng=rng,
        ).to(next(model.denoiser.parameters()).device)
    return Players(model, student, motion, copy.deepcopy(motion).requires_grad_(False), discriminator)


def _optimizers(
    recipe: Recipe, method: Method, players: Players
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, Schedule]]:
    optim, updates = recipe.optim, recipe.training.updates
    optimizers: dict[str, torch.optim.Optimizer] = {}
    schedules: dict[str, Schedule] = {}
    for player in method.order:
        weights = list(players.parameters(player).values())
        rate = optim.discriminator_lr if player == "discriminator" else optim.lr
        optimizers[player] = torch.optim.AdamW(weights, lr=rate, betas=optim.betas, weight_decay=optim.weight_decay)
        begin, end = (round(share * updates) for share in method.span(player))
        schedules[player] = Schedule(rate, optim.warmup, end - begin, optim.schedule, begin)
    return optimizers, schedules


def _plan(recipe: Recipe, device: torch.device) -> Plan:
    t = recipe.training
    return Plan(
        t.updates, t.accumulation, recipe.optim.clip, t.seed, t.save_every, t.keep, t.log_every, t.precision, device
    )  # fmt: skip


def _finish(
    recipe: Recipe, teacher_mark: str, model: VideoModel, method: Method, players: Players, frames: int,
    size: tuple[int, int], folder: Path,
) -> StudentCard:  # fmt: skip
    """Save the student's weights, the motion head and, last, the card."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    players.student.save(folder)
    if any(True for _ in players.motion.parameters()):
        path = folder / "motion.safetensors"
        with whole(path) as partial:
            try:
                save_file(players.averaged_motion.state_dict(), partial)
            except SafetensorError as error:  # how its writer says that the disk is full
                raise UserError(f"cannot write {path}: {error}; free some space and run the command again") from error
    lora = recipe.student.kind == "lora"
    sampler = method.sampler()
    settings = {f.name: getattr(sampler, f.name) for f in fields(sampler) if f.name != "timestep_scaling"}
    made = provenance()
    versions = {key: made[key] for key in ("mcm", "commit", "python", "torch", "diffusers", "transformers")}
    card = StudentCard(
        name=recipe.name,
        teacher=Teacher(name=recipe.teacher, fingerprint=teacher_mark),
        family=model.family,
        method=method.name,
        scheduler=model.scheduler_config,
        sampler={"name": sampler.name, **settings},
        timestep_scaling=method.timestep_scaling if hasattr(sampler, "timestep_scaling") else None,
        frames=frames,
        size=size,
        fps=recipe.data.fps or model.fps,
        weights=Weights(
            kind=recipe.student.kind,
            file="adapter_model.safetensors" if lora else "diffusion_pytorch_model.safetensors",
            rank=recipe.student.rank if lora else None,
            alpha=recipe.student.alpha if lora else None,
        ),
        provenance=Provenance(
            recipe=recipe.to_dict(), versions=versions,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            updates=recipe.training.updates, seed=recipe.training.seed,
        ),
    )  # fmt: skip
    card.save(folder)
    return card


# Data ---------------------------------------------------------------------------------------------------------------


def material(
    recipe: Recipe, model: VideoModel, frames: int, size: tuple[int, int], cache: Path, progress: Progress
) -> tuple[LatentSet, PictureSource | None, list[SourceReport]]:
    """The encoded clips, the pictures if the adversary wants them, and reports of all sources."""
    data, reports = recipe.data, []
    pictures: PictureSource | None = None
    if recipe.method.adversary == "pictures" and data.images is not None:
        pictures = open_pictures(data.images, size, progress)
        reports.append(pictures.report)
    keep = min(frames, 4) if recipe.method.adversary == "video" else 0
    made_with = {
        "teacher": recipe.teacher, "codec": fingerprint(model.codec.vae), "videos": data.videos,
        "prompts": None if data.videos else data.prompts, "frames": frames, "size": list(size),
        "stride": data.stride, "fps": data.fps, "kept frames": keep,
        "laboratory clips": data.laboratory_clips,
        "seed": None if data.videos else recipe.training.seed,
    }  # fmt: skip
    if data.cache and LatentSet.exists(cache):
        clips = LatentSet.load(cache, made_with)
        return clips, pictures, reports
    if data.videos is not None:
        source = open_videos(data.videos, frames, size, data.laboratory_clips, data.stride, data.fps, progress)
        clips = LatentSet.build(
            source, model.codec, made_with, keep_frames=keep, device=next(model.codec.parameters()).device,
            progress=lambda done: progress("encoding the clips", done, len(source)),
        )  # fmt: skip
        reports.append(source.report)
    else:
        prompts = Prompts(str(data.prompts))
        reports.append(prompts.report)
        clips = _teachers_clips(recipe, model, prompts, frames, size, made_with, keep, progress)
    return clips, pictures, reports


def _teachers_clips(
    recipe: Recipe, model: VideoModel, prompts: Prompts, frames: int, size: tuple[int, int], made_with: dict[str, Any],
    keep: int, progress: Progress,
) -> LatentSet:  # fmt: skip
    """No videos at hand: the teacher makes the clips itself, several for each prompt."""
    from mcm.generate import Maker

    maker = Maker(model, recipe.teacher)
    count = max(TEACHER_CLIPS, recipe.training.batch)

    def made() -> Iterable[Clip]:
        for start in range(0, count, 8):
            numbers = range(start, min(start + 8, count))
            said = [prompts[i % len(prompts)] for i in numbers]
            seeds = [recipe.training.seed * count + i for i in numbers]
            video = maker.decode(maker.latents(said, seeds, 25, frames=frames, size=size))
            for i, text, clip in zip(numbers, said, video, strict=True):
                yield Clip(clip, text, f"teacher-{i:06d}")
            progress("the teacher makes clips", numbers[-1] + 1, count)

    device = next(model.codec.parameters()).device
    return LatentSet.build(made(), model.codec, made_with, keep_frames=keep, device=device)
