"""Distillation: recipe -> model + data + method -> trainer -> card.

The folder of a run: recipe.yaml (resolved), sources.json (what the data were, and what was left out and why), cache/
(encoded clips), checkpoints/, previews/, log.jsonl, tensorboard/, and at the end student/ with its card.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Generator
from contextlib import closing, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mcm.card import Provenance, StudentCard, Teacher, Weights, card_path
from mcm.data.cache import EncodedClips, LatentSet
from mcm.data.open import PictureSource, open_pictures, open_prompts, open_videos
from mcm.data.prepared import PreparedClips, PreparedPictures, is_prepared
from mcm.data.readers import ClipReader, PictureReader
from mcm.data.report import SourceReport
from mcm.data.sources import Clip, Prompts
from mcm.data.stream import Stream
from mcm.encoding import made_with
from mcm.errors import UserError
from mcm.evaluation.report import provenance
from mcm.methods.base import Method, Players
from mcm.models.bases import TEACHER, Bases
from mcm.models.compiling import check_compiler
from mcm.models.fingerprint import fingerprint
from mcm.models.video import VideoModel, load_video_model
from mcm.output import Progress, silent, write_json, write_tensors
from mcm.recipe import Recipe
from mcm.training.average import PowerAverage
from mcm.training.device import autocast, chosen_device
from mcm.training.health import Watch, previewed
from mcm.training.log import RunLog
from mcm.training.material import Material
from mcm.training.players import make_optimizers, make_plan, make_players
from mcm.training.preview import Previews
from mcm.training.ranks import Joined, Ranks
from mcm.training.sharded import Sharded
from mcm.training.trainer import Trainer, saved_updates

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
    with Joined(recipe.training.rank_timeout) as ranks:
        return _distill(recipe, out, progress if ranks.main else silent, cache, ranks)


def _distill(
    recipe: Recipe, out: Path, progress: Progress, cache: str | Path | None, ranks: Ranks
) -> StudentCard:
    """`distill` on every rank; rank 0 alone writes."""
    recipe.may_use(out)
    student_folder = out / "student"
    done = (student_folder / "card.json").exists()
    if ranks.any(done):  # before rank 0 can write one
        return StudentCard.load(student_folder)
    if ranks.several:
        clips_each = recipe.training.batch * recipe.training.accumulation
        progress("processes at work", ranks.world, ranks.world, f"{clips_each} clips an update on each")

    progress("loading the teacher", 0, 0)
    device = chosen_device()
    _check_settings(recipe, device, ranks)
    model = load_video_model(recipe.teacher, device)
    teacher_mark = fingerprint(model.denoiser.network)
    start = _start(recipe, teacher_mark)
    method = recipe.method.build()
    method.check(model)
    bases = Bases.load(method.bases, model.denoiser) if method.bases else None
    frames, size = recipe.data.frames or model.frames, recipe.data.size or model.size
    model.check_geometry(frames, size)
    cache = out / "cache" if cache is None else Path(cache)
    caching = recipe.data.cache and not (recipe.data.videos and is_prepared(recipe.data.videos))
    with ranks.main_first():  # it encodes the clips, the others find them in the cache
        if caching and not (ranks.main or LatentSet.exists(cache)):
            raise UserError(f"no clips in {cache}, where rank 0 wrote them: all machines must share that folder")
        clips, pictures, reports = material(recipe, model, bases, frames, size, cache, progress)
        real = method.frames_picked if method.adversary != "none" else 0
        runs = len(bases) if bases is not None and recipe.data.videos is None else 1
        batches = Material(clips, model.text, pictures, real, device, runs)
        if len(batches) < recipe.training.batch:
            raise UserError(
                f"training.batch is {recipe.training.batch}, but there are only {len(batches)} clips: give more videos "
                "or a smaller batch (--training.batch)"
            )
        if ranks.main:
            recipe.claim(out)  # from here on the folder is this run's
            if not (out / "sources.json").exists():  # one that goes on from its cache has not looked at films again
                write_json(out / "sources.json", [report.as_dict() for report in reports])
            if caching and isinstance(clips, LatentSet) and not LatentSet.exists(cache):
                clips.save(cache)  # after the report, so that no kill can leave a cache without one

    players = make_players(recipe, model, method, start, bases)
    sharded = None
    if ranks.several and recipe.student.kind == "full":
        sharded = Sharded([d.network for d in players.student.denoisers() if d is not model.denoiser], device, ranks)
    shape = model.latent_shape(frames, size)
    previews = None
    if recipe.training.preview_every:
        prompts = list(recipe.training.preview_prompts or dict.fromkeys(itertools.islice(clips.captions, 256)))[:4]
        previews = Previews(method, players, prompts, out / "previews", shape)
    watch = None
    if ranks.main:
        log = RunLog(out, saved_updates(out / "checkpoints"), recipe.training.tracker)
        watch = Watch(recipe, log, previews, device, lambda: trainer.micro_batches * recipe.training.batch)

    def after(update: int) -> None:
        if previewed(recipe, update):
            with sharded.whole() if sharded else nullcontext():
                if watch is not None:
                    watch.after(update)
                ranks.follow()

    width = recipe.training.average
    average = None if width is None else PowerAverage(players.student.trainable(), width)
    told: dict[str, Any] = {}
    if watch is not None:
        told = {"log": watch.numbers, "line": watch.line, "rolled_back": watch.rolled_back}
    trainer = Trainer(
        method, players, batches,
        Stream(len(batches), recipe.training.batch, recipe.training.seed, ranks.rank, ranks.world),
        *make_optimizers(recipe, method, players, sharded is not None), make_plan(recipe, device), out / "checkpoints",
        after_update=after, progress=progress, average=average, ranks=ranks, sharded=sharded, **told,
    )  # fmt: skip
    trainer.run()
    if average is not None:
        average.hand_over()
    with sharded.whole() if sharded else nullcontext():
        if watch is not None:
            watch.log.close()
            _finish(recipe, teacher_mark, model, method, players, frames, size, student_folder)
        ranks.follow()
    return StudentCard.load(student_folder)


def _check_settings(recipe: Recipe, device: torch.device, ranks: Ranks) -> None:
    """UserError for a precision that the device, and what a student divided among ranks, cannot take."""
    autocast(device, recipe.training.precision)
    if recipe.training.compile:
        if recipe.student.kind == "full" and ranks.several:
            raise UserError(
                "training.compile is true, which a full student that is divided among ranks does not take: train "
                'adapters (student.kind "lora"), or leave it false'
            )
        check_compiler(device)
    if recipe.training.precision == "fp16" and recipe.student.kind == "full" and ranks.several:
        raise UserError(
            'training.precision is "fp16", which a full student on several ranks does not take: use "bf16"'
        )
    if recipe.method.bases and recipe.student.kind == "full" and ranks.several:
        raise UserError(
            "method.bases are several image models, whose weights cannot be exchanged in a full student that is "
            'divided among ranks: train adapters (student.kind "lora"), or on one rank'
        )


def _start(recipe: Recipe, teacher_mark: str) -> Path | None:
    """The folder of the weights to go on from; UserError where they are another teacher's."""
    if recipe.student.start is None:
        return None
    from mcm.pocket import zoo

    path = card_path(zoo.find(recipe.student.start) or recipe.student.start)
    if StudentCard.load(path).teacher.fingerprint != teacher_mark:
        raise UserError(
            f"student.start: the student {path.parent} was made from another teacher than {recipe.teacher}; expected "
            "one of the same teacher"
        )
    return path.parent


def _finish(
    recipe: Recipe, teacher_mark: str, model: VideoModel, method: Method, players: Players, frames: int,
    size: tuple[int, int], folder: Path,
) -> StudentCard:  # fmt: skip
    """Save the student's weights, the motion head and, last, the card."""
    players.student.save(folder)
    if any(True for _ in players.motion.parameters()):
        write_tensors(folder / "motion.safetensors", players.averaged_motion.state_dict())
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
    recipe: Recipe, model: VideoModel, bases: Bases | None, frames: int, size: tuple[int, int], cache: Path,
    progress: Progress,
) -> tuple[EncodedClips, PictureSource | None, list[SourceReport]]:
    """The encoded clips, the pictures if the adversary wants them, and reports of all sources.

    Videos are all bases' alike: no video is known to be of a base. Without videos each base has clips of its own, as
    many, one base's after the other's; `Material` takes them apart.
    """
    data, reports = recipe.data, []
    pictures: PictureSource | None = None
    if recipe.method.adversary == "pictures" and data.images is not None:
        if is_prepared(data.images):
            pictures = PreparedPictures(data.images, made_with(model, PictureReader(size)))
        else:
            pictures = open_pictures(data.images, size, progress)
        reports.append(pictures.report)
    if data.videos is not None and is_prepared(data.videos):
        prepared = PreparedClips(data.videos, made_with(model, ClipReader(frames, size, data.stride, data.fps)))
        reports.append(prepared.report)
        return prepared, pictures, reports
    keep = min(frames, 4) if recipe.method.adversary == "video" else 0
    latents_of = {
        "teacher": recipe.teacher, "codec": fingerprint(model.codec.vae), "videos": data.videos,
        "prompts": None if data.videos else data.prompts, "frames": frames, "size": list(size),
        "stride": data.stride, "fps": data.fps, "kept frames": keep,
        "laboratory clips": data.laboratory_clips,
        **({} if bases is None or data.videos else {"bases": _marks(bases, model)}),
    }  # fmt: skip
    if data.cache and LatentSet.exists(cache):
        clips = LatentSet.load(cache, latents_of)
        return clips, pictures, reports
    if data.videos is not None:
        source = open_videos(data.videos, frames, size, data.laboratory_clips, data.stride, data.fps, progress)
        clips = LatentSet.build(
            source, model.codec, latents_of, keep_frames=keep, device=next(model.codec.parameters()).device,
            progress=lambda done: progress("encoding the clips", done, len(source)),
        )  # fmt: skip
        reports.append(source.report)
    else:
        prompts = open_prompts(str(data.prompts), data.laboratory_clips)
        reports.append(prompts.report)
        clips = _teachers_clips(recipe, model, bases, prompts, frames, size, latents_of, keep, progress)
    return clips, pictures, reports


def _teachers_clips(
    recipe: Recipe, model: VideoModel, bases: Bases | None, prompts: Prompts, frames: int, size: tuple[int, int],
    latents_of: dict[str, Any], keep: int, progress: Progress,
) -> LatentSet:  # fmt: skip
    """No videos at hand: the teacher makes the clips itself, several for each prompt, and so with each base."""
    from mcm.generate import Maker

    maker = Maker(model, recipe.teacher)
    count = max(TEACHER_CLIPS, recipe.training.batch)
    names = (TEACHER,) if bases is None else bases.names

    def made() -> Generator[Clip]:
        for k, base in enumerate(names):
            with nullcontext() if bases is None else bases.beneath([model.denoiser], k):
                for start in range(0, count, 8):
                    numbers = range(start, min(start + 8, count))
                    said = [prompts[i % len(prompts)] for i in numbers]
                    seeds = [k * count + i for i in numbers]  # any run's alike, as videos would be
                    video = maker.decode(maker.latents(said, seeds, 25, frames=frames, size=size))
                    for i, text, clip in zip(numbers, said, video, strict=True):
                        yield Clip(clip, text, f"{Path(base).name}-{i:06d}")
                    progress("the teacher makes clips", k * count + numbers[-1] + 1, len(names) * count)

    device = next(model.codec.parameters()).device
    with closing(made()) as clips:  # closed, it leaves the teacher as it was, whatever happens
        return LatentSet.build(clips, model.codec, latents_of, keep_frames=keep, device=device)


def _marks(bases: Bases, model: VideoModel) -> dict[str, str]:
    """Fingerprints of the teacher with each base inside, by the bases' names."""
    marks = {}
    for k, name in enumerate(bases.names):
        with bases.beneath([model.denoiser], k):
            marks[name] = fingerprint(model.denoiser.network)
    return marks
