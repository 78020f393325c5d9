"""How the zoo was made: every network trained from the renderer alone, then put together as ordinary folders.

    python -m mcm.pocket.train_zoo                      everything, in order (hours on two cores)
    python -m mcm.pocket.train_zoo autoencoder clip     some stages
    python -m mcm.pocket.train_zoo assemble             write the folders of mcm/pocket/networks from what is trained
    python -m mcm.pocket.train_zoo students             the shipped students, of the teachers as they are in the package
    python -m mcm.pocket.train_zoo sharpen              a sharper decoder, tried and not shipped: only when named

Work is kept in `--work`; any stage goes on where it was killed. Two stages on two cores, with --threads 1 each, are
faster than one stage on both.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcm.errors import UserError
from mcm.models.folders import LORA_FILE
from mcm.pocket import zoo
from mcm.pocket.training import (
    autoencoder,
    backbone,
    clip,
    control,
    decoder,
    judging,
    looks,
    posing,
    students,
    teachers,
    videomae,
)

SCHEDULER = {
    "_class_name": "DDIMScheduler", **teachers.SCHEDULER, "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1, "prediction_type": "epsilon", "timestep_spacing": "leading",
}  # fmt: skip
FACTS = {"frames": 8, "size": [64, 64], "fps": 8}
GUIDANCE = {"pocket-animatediff": 3.0, "pocket-modelscope": 3.0}
DESCRIPTION = "A small network of the pocket laboratory, trained from its renderer alone (mcm/pocket/train_zoo.py).\n"


def fit_small(work: Path, name: str, fit: Callable[..., nn.Module], **how: Any) -> None:
    """Train one of the networks that need no other, and keep it beside its checkpoint."""
    network = fit(work, **how)
    if name in ("judge", "pose"):
        from safetensors.torch import save_file

        save_file({k: v.half() for k, v in network.state_dict().items()}, work / f"{name}.half.safetensors")
    else:
        network.half().save_pretrained(work / name)  # pyright: ignore[reportCallIssue]


STAGES: dict[str, Callable[[Path], object]] = {
    "autoencoder": lambda work: fit_small(work, "autoencoder", autoencoder.fit),
    "decoder": lambda work: fit_small(work, "autoencoder", decoder.fit),
    "clip": lambda work: fit_small(work, "clip", clip.fit),
    "image": lambda work: teachers.fit_image(work, 8000),
    "motion": lambda work: teachers.fit_motion(work, 7000),
    "video": lambda work: teachers.fit_video(work, 7800),
    "control": lambda work: control.fit(work, 4000),
    "looks": lambda work: [looks.fit(work, style, 1500) for style in zoo.LOOKS],
    "backbone": lambda work: fit_small(work, "backbone", backbone.fit),
    "videomae": lambda work: fit_small(work, "videomae", videomae.fit),
    "judge": lambda work: fit_small(work, "judge", judging.fit),
    "pose": lambda work: fit_small(work, "pose", posing.fit),
}


def fit_students(work: Path) -> None:
    """Distil the students that are shipped, and ship them."""
    for name in students.SHIPPED:
        students.fit(work, name)
        students.ship(work / "students" / name, zoo.ZOO / "students" / name)


ONLY_NAMED: dict[str, Callable[[Path], object]] = {
    "students": fit_students,
    "sharpen": lambda work: fit_small(work, "autoencoder_sharp", decoder.sharpen),
}


def assemble(work: Path, out: Path = zoo.ZOO) -> None:
    """Write the networks as diffusers and transformers folders in half precision; stages not yet trained are left out.

    The autoencoder and the text encoder stand in both teachers' folders: each teacher is a whole pipeline.
    """
    for name, unet, pipeline in (
        ("pocket-animatediff", "motion", "AnimateDiffPipeline"),
        ("pocket-modelscope", "video", "TextToVideoSDPipeline"),
    ):
        if all((work / part).is_dir() for part in (unet, "autoencoder", "clip")):
            _assemble_teacher(work, out / name, name, unet, pipeline)
    for name, stage in ((zoo.CLIP, "clip"), (zoo.VIDEO_FEATURES, "videomae"), (zoo.BACKBONE, "backbone")):
        if (work / stage / "model.safetensors").exists():
            _copy(work / stage, out / name)
            _write(out / name / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    if (work / "control").is_dir():
        _assemble_control(work, out / zoo.CONTROLNETS["pocket-animatediff"])
    for style, name in zoo.LOOKS.items():
        if (file := work / f"look-{style}" / LORA_FILE).exists():
            (out / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / name / LORA_FILE)
            _describe(out / name)
    for config in out.rglob("config.json"):  # where a network lay while it was trained is nobody's business
        kept = json.loads(config.read_text())
        if kept.pop("_name_or_path", None) is not None:
            _write(config, kept)
    for name in ("judge", "pose"):
        if (work / f"{name}.half.safetensors").exists():
            shutil.copyfile(work / f"{name}.half.safetensors", out / f"{name}.safetensors")


def _assemble_teacher(work: Path, folder: Path, name: str, unet: str, pipeline: str) -> None:
    from diffusers import UNet3DConditionModel, UNetMotionModel
    from transformers import CLIPTextModel

    kind = {"motion": UNetMotionModel, "video": UNet3DConditionModel}[unet]
    kind.from_pretrained(work / unet).half().save_pretrained(folder / "unet")
    _copy(work / "autoencoder", folder / "vae")
    CLIPTextModel.from_pretrained(work / "clip").half().save_pretrained(folder / "text_encoder")
    for file in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / "tokenizer").mkdir(exist_ok=True)
        shutil.copyfile(work / "clip" / file, folder / "tokenizer" / file)
    (folder / "scheduler").mkdir(exist_ok=True)
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write(folder / "mcm.json", {**FACTS, "guidance_scale": GUIDANCE[name]})
    index = {
        "_class_name": pipeline, "vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", kind.__name__],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }  # fmt: skip
    _write(folder / "model_index.json", index)
    _describe(folder)


def _assemble_control(work: Path, folder: Path) -> None:
    from diffusers import ControlNetModel

    ControlNetModel.from_pretrained(work / "control").half().save_pretrained(folder)
    _describe(folder)


def _describe(folder: Path) -> None:
    (folder / "README.md").write_text(f"# {folder.name}\n\n{DESCRIPTION}")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mcm.pocket.train_zoo", description=str(__doc__).splitlines()[0])
    known = {**STAGES, "assemble": assemble, **ONLY_NAMED}
    help_ = f"{', '.join(known)} (default: all before {next(iter(ONLY_NAMED))})"
    parser.add_argument("stages", nargs="*", help=help_)
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)
    wanted = given.stages or [*STAGES, "assemble"]
    for stage in wanted:
        if stage not in known:
            parser.error(f"unknown stage {stage!r}: expected some of {', '.join(known)}")
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    try:
        for stage in wanted:
            print(f"== {stage}", flush=True)
            known[stage](given.work)
    except UserError as error:
        print(f"train_zoo: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
