"""The weights that the method's authors released (Hugging Face yhzhai/mcm), and folders of their layout.

A folder there, animatediff-{laion,webvid} or modelscopet2v-{webvid,laion,anime,real,3d-cartoon}, is a peft LoRA of the
denoising network: adapter_config.json and adapter_model.safetensors ("base_model.model.LAYER.lora_A.weight"). It has
no card: how to sample it stands in the authors' demo, and here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mcm.card import CARD, Provenance, StudentCard, Teacher, Weights
from mcm.errors import UserError
from mcm.models.fingerprint import fingerprint
from mcm.models.folders import find_folder, read_json
from mcm.models.student import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mcm.models.video import VideoModel, load_video_model

_SOURCE = re.compile(r"(?P<repo>.+):(?P<part>[\w-][\w.-]*(?:/[\w-][\w.-]*)*)")  # no "..": nothing outside of REPO


class Release(NamedTuple):
    """What the released weights of one family have in common.

    prefix: of their folders' names. network: the class that the adapters were made on. teachers: where the teacher
    may lie, in the order of preference; getting: how to come by it. scheduler: what the authors' demo changes in
    the teacher's scheduler configuration.
    """

    prefix: str
    network: str
    teachers: tuple[str, ...]
    getting: str
    scheduler: dict[str, Any]


RELEASES = (
    Release(
        "modelscopet2v",
        "UNet3DConditionModel",
        ("./teachers/modelscope", "ali-vilab/text-to-video-ms-1.7b"),
        "run `hf download ali-vilab/text-to-video-ms-1.7b --local-dir teachers/modelscope` on a machine with network "
        "and copy that folder here, to teachers/modelscope",
        {},
    ),
    Release(
        "animatediff",
        "UNetMotionModel",
        ("./teachers/animatediff",),
        "make one pipeline of a Stable Diffusion 1.5 model (the authors show SG161222/Realistic_Vision_V6.0_B1_noVAE) "
        "and guoyww/animatediff-motion-adapter-v1-5-2 with diffusers' AnimateDiffPipeline, and save_pretrained it to "
        "teachers/animatediff",
        # The betas of the motion adapter's own training, whatever the picture model's scheduler says.
        {
            "beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
            "steps_offset": 1, "timestep_spacing": "linspace",
        },
    ),
)  # fmt: skip
TIMESTEP_SCALING, SOLVER_STEPS, FPS = 4.0, 50, 7.0


def find_official(name: str | Path) -> Path | None:
    """The folder of released weights: "REPO:SUBFOLDER" ("yhzhai/mcm:modelscopet2v-laion"; REPO may be a local folder),
    or a local folder with adapters and no card. None where `name` is neither.

    UserError where it is such a source, but not to be had.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder if (folder / ADAPTER_CONFIG).is_file() and not (folder / CARD).exists() else None
    source = _SOURCE.fullmatch(str(name))
    if source is None or folder.exists():
        return None
    repo, part = source["repo"], source["part"]
    missing = UserError(
        f"student {name}: {part}/ of {repo}, with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, is not to be had here; on a "
        f"machine with network run `hf download {repo} --include '{part}/*' --local-dir weights`, copy that folder "
        f"here and give weights/{part}"
    )
    try:
        found = find_folder(repo, "student", (part,)) / part
    except UserError as error:
        raise missing from error
    if not all((found / file).is_file() for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        raise missing
    return found


def load_official(folder: Path, device: torch.device | str = "cpu") -> tuple[VideoModel, StudentCard]:
    """The bare teacher of the released weights in `folder`, and a card that says how they are sampled.

    The teacher is the folder that adapter_config.json names as its base model, where that is here, else the usual one.
    Sampling is the authors' demo's: LCM's times, timestep scaling 4, no guidance. UserError where the teacher is
    missing or of another family, or the family cannot be told.
    """
    stated = read_json(folder / ADAPTER_CONFIG, f"student {folder}")
    release = _release(folder, stated)
    teacher = _teacher(stated, release)
    try:
        model = load_video_model(teacher, device)
    except UserError as error:
        raise UserError(
            f"student {folder}: its teacher cannot be loaded ({error}); {release.getting}, or put the path of another "
            f"place into base_model_name_or_path of {folder / ADAPTER_CONFIG}"
        ) from error
    network = model.denoiser.network
    if type(network).__name__ != release.network:
        raise UserError(
            f"student {folder}: its adapters are for a {release.network}; {teacher} has a {type(network).__name__}"
        )
    rank, alpha = stated.get("r"), stated.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1 or alpha <= 0:
        raise UserError(
            f"student {folder}: {ADAPTER_CONFIG} has r {rank!r} and lora_alpha {alpha!r}; expected numbers above 0"
        )
    card = StudentCard(
        name=folder.resolve().name,
        teacher=Teacher(name=teacher, fingerprint=fingerprint(network)),
        family=model.family,
        method="mcm",
        scheduler={**model.scheduler_config, **release.scheduler},
        sampler={"name": "consistency", "original_steps": SOLVER_STEPS},
        timestep_scaling=TIMESTEP_SCALING,
        frames=model.frames,
        size=model.size,
        fps=FPS,
        weights=Weights(kind="lora", file=ADAPTER_WEIGHTS, rank=rank, alpha=alpha),
        # They were not made here: what is known is where they come from.
        provenance=Provenance(recipe={"weights": str(folder)}, versions={}, date="unknown", updates=0, seed=0),
    )
    return model, card


def _release(folder: Path, stated: dict[str, Any]) -> Release:
    """By the network that peft wrote into the configuration, else by the folder's name."""
    network = (stated.get("auto_mapping") or {}).get("base_model_class")
    for release in RELEASES:
        if network == release.network or (network is None and folder.resolve().name.startswith(release.prefix)):
            return release
    known = " or ".join(release.network for release in RELEASES)
    raise UserError(
        f"student {folder}: adapters without a {CARD}, and {ADAPTER_CONFIG} does not tell of which network "
        f"(auto_mapping.base_model_class is {network!r}); expected {known}, or a folder called as the authors' are "
        f"({', '.join(f'{release.prefix}-...' for release in RELEASES)})"
    )


def _teacher(stated: dict[str, Any], release: Release) -> str:
    named = stated.get("base_model_name_or_path")
    if named and Path(named).expanduser().is_dir():
        return str(named)
    # A name that is no folder here is of the machine that the weights were made on, or of a picture model.
    return next((place for place in release.teachers if Path(place).is_dir()), release.teachers[-1])
