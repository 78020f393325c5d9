"""Students for other programs: diffusers, peft and ComfyUI load what is written here without this package.

A format is a folder: weights, README.md (how to load them and how to sample, in a few lines that run), the scheduler
where diffusers samples, and export.json, which says what was exported.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mcm.card import StudentCard
from mcm.errors import UserError, one_of
from mcm.generate import Maker, load_maker
from mcm.models.folders import read_json
from mcm.models.joined import SIGN
from mcm.models.student import FullStudent, Student, stored
from mcm.models.video import families
from mcm.output import Progress, cannot_write, holds, silent, write_json, write_text
from mcm.samplers.scheduler import FLOW_LCM, diffusers_scheduler, own_levels

FILE, README = "export.json", "README.md"
LORA = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for first
# What ComfyUI-AnimateDiff-Evolved calls the betas that diffusers calls linear and scaled_linear: with LCM, without.
_EVOLVED_BETAS = {
    "linear": ("lcm >> sqrt_linear", "sqrt_linear (AnimateDiff)"),
    "scaled_linear": ("lcm", "linear (HotshotXL/default)"),
}
_SEEDS = """A seed makes the same video as in mcm where the pipeline draws the noise of one video at a time as mcm does:
channels, frames, height, width (AnimateDiffPipeline, WanPipeline). CogVideoXPipeline puts the frames first, and so does
TextToVideoSDPipeline after the first step.
"""


class Layer(NamedTuple):
    """Adapters of one layer: down (r, in, ...), up (out, r, ...); the layer adds alpha / r times up after down."""

    down: Tensor
    up: Tensor
    alpha: float

    def scaled_up(self) -> Tensor:
        """up with alpha / r in it, for layouts in which alpha is r."""
        return self.up * (self.alpha / self.down.shape[0])


def export(
    student: str | Path,
    format: str,  # noqa: A002 (the option's name)
    out: str | Path,
    half: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write a student for other programs into the folder `out`, whole or not at all; returns it.

    Args:
        student: a student's or a run's folder, a shipped student's name, or official weights ("REPO:SUBFOLDER").
        format: "diffusers" (a LoRA file for `pipeline.load_lora_weights`), "peft" (a folder for
            `PeftModel.from_pretrained`), "merged" (a whole pipeline, adapters folded in, for
            `DiffusionPipeline.from_pretrained`) or "comfyui" (a LoRA in kohya's layout and a motion LoRA in
            AnimateDiff's). The same export again is left as it is.
        out: a new or empty folder.
        half: weights in float16.

    Raises:
        UserError: for an unknown format, one that this student cannot have, or a folder that cannot be used.
    """
    if format not in FORMATS:
        raise one_of("format", format, FORMATS)
    out = Path(out).expanduser()
    progress("loading the student", 0, 0)
    maker = load_maker(student)
    if maker.card is None or maker.student is None:
        raise UserError(f"{student} is a teacher: expected a student, for instance the folder of a run")
    settings = {"student": str(student), "format": format, "half": half, "card": maker.card.model_dump(mode="json")}
    if holds(out, settings, FILE):
        return out
    with _whole_folder(out) as folder:
        progress(f"writing {format}", 0, 0)
        told = FORMATS[format](maker, folder, half)
        write_text(folder / README, _readme(maker, *told))
        write_json(folder / FILE, settings)
    return out


# Formats: each writes into the folder; -> its library's name, what it is, how it is loaded ----------------------------


def _diffusers(maker: Maker, folder: Path, half: bool) -> tuple[str, str, str]:
    from diffusers.loaders.peft import PeftAdapterMixin

    scheduler, pipeline, network = diffusers_scheduler(_card(maker)), _pipeline(maker), _single(maker, "diffusers")
    part = families()[maker.model.family].part
    if not isinstance(network, PeftAdapterMixin) or part not in getattr(pipeline, "_lora_loadable_modules", ()):
        raise UserError(
            f"format diffusers: diffusers' {type(network).__name__} takes no LoRA (its load_lora_weights fails); "
            "expected format peft or merged for this family"
        )
    weights = {}
    for name, layer in _layers(maker, "diffusers").items():
        # alpha in the weights: without a word on it diffusers, of any version, takes alpha to be r
        weights[f"{name}.lora_A.weight"] = stored(layer.down, half)
        weights[f"{name}.lora_B.weight"] = stored(layer.scaled_up(), half)
    pipeline.save_lora_weights(folder, **{f"{part}_lora_layers": weights}, weight_name=LORA)
    scheduler.save_pretrained(folder / "scheduler")
    return "diffusers", "a LoRA for diffusers' `load_lora_weights`", (
        f'pipeline.load_lora_weights(folder, weight_name="{LORA}")\n'
        "pipeline.fuse_lora()  # into the weights: diffusers' motion modules cannot call all adapted layers\n"
        "pipeline.unload_lora_weights()"
    )  # fmt: skip


def _peft(maker: Maker, folder: Path, half: bool) -> tuple[str, str, str]:
    if isinstance(maker.student, FullStudent):
        raise _no_adapters("peft")
    scheduler, part = diffusers_scheduler(_card(maker)), families()[maker.model.family].part
    _single(maker, "peft")
    cast(Student, maker.student).save(folder, half)
    _card(maker).save(folder)  # so the folder is a student for mcm, too
    scheduler.save_pretrained(folder / "scheduler")
    loading = f"pipeline.{part} = PeftModel.from_pretrained(pipeline.{part}, folder).merge_and_unload()"
    return "peft", "a PEFT adapter for `PeftModel.from_pretrained`", loading


def _merged(maker: Maker, folder: Path, half: bool) -> tuple[str, str, str]:
    kind, model = _pipeline(maker), maker.model
    given = {
        **families()[model.family].components(_folded(cast(Student, maker.student)), model.scheduler_config),
        "vae": model.codec.vae, "text_encoder": model.text.network, "tokenizer": model.text.tokenizer,
        "scheduler": diffusers_scheduler(_card(maker)),
    }  # fmt: skip
    wanted = inspect.signature(kind.__init__).parameters
    optional = set(kind._optional_components) & (wanted.keys() - given.keys())
    pipeline = kind(**given, **dict.fromkeys(optional))
    (pipeline.to(torch.float16) if half else pipeline).save_pretrained(folder)
    return "diffusers", "a whole pipeline for `DiffusionPipeline.from_pretrained`", ""


def _comfyui(maker: Maker, folder: Path, half: bool) -> tuple[str, str, str]:
    denoiser = maker.model.denoiser
    if type(denoiser.network).__name__ != "UNetMotionModel":
        raise UserError(
            f"format comfyui: it is written for the family animatediff, for which ComfyUI and its extension "
            f"AnimateDiff-Evolved have layouts; this student is of the family {maker.model.family}: expected format "
            "peft or merged"
        )
    spatial, motion, lines = {}, {}, []
    for name, layer in _layers(maker, "comfyui").items():
        if denoiser.is_temporal(name):
            key = motion_key(name)
            motion[f"{key}.down.weight"] = stored(layer.down, half)
            motion[f"{key}.up.weight"] = stored(layer.scaled_up(), half)  # this layout has no alpha
        else:
            key = "lora_unet_" + name.replace(".", "_")
            spatial[f"{key}.lora_down.weight"] = stored(layer.down, half)
            spatial[f"{key}.lora_up.weight"] = stored(layer.up, half)
            spatial[f"{key}.alpha"] = stored(torch.tensor(layer.alpha), half)
    name = re.sub(r"\W+", "-", _card(maker).name)
    for weights, end, place, node in (
        (spatial, "lora", "models/loras", "Load LoRA (model only)"),
        (motion, "motion_lora", "models/animatediff_motion_lora", "AnimateDiff-Evolved's Load AnimateDiff LoRA"),
    ):
        if weights:
            save_file(weights, folder / f"{name}_{end}.safetensors", metadata={"format": "pt"})
            lines.append(f"- `{name}_{end}.safetensors` belongs into `ComfyUI/{place}`; node: {node}, strength 1.")
    return "", "\n".join(lines), ""


FORMATS = {"diffusers": _diffusers, "peft": _peft, "merged": _merged, "comfyui": _comfyui}


def motion_key(name: str) -> str:
    """A layer of diffusers' motion modules by AnimateDiff's own name, as in its motion LoRAs.

    "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q" ->
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
    """
    name = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", name)
    name = re.sub(r"\.attn(\d+)\.", lambda found: f".attention_blocks.{int(found[1]) - 1}.processor.", name)
    return f"{name.removesuffix('.0') if name.endswith('.to_out.0') else name}_lora"


# The student's parts -------------------------------------------------------------------------------------------------


def _card(maker: Maker) -> StudentCard:
    return cast(StudentCard, maker.card)


def _pipeline(maker: Maker) -> Any:
    """The class of the teacher's pipeline; UserError where its folder names none of diffusers'."""
    import diffusers

    model = maker.model
    name = read_json(model.folder / "model_index.json", f"teacher {model.name}").get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise UserError(
            f"teacher {model.name}: model_index.json names the pipeline {name!r}; expected one of diffusers'"
        )
    return kind


def _single(maker: Maker, name: str) -> Any:
    """The teacher's network; UserError where it is several, which one LoRA cannot speak of."""
    network = maker.model.denoiser.network
    if not hasattr(network, "save_config"):
        raise UserError(
            f"format {name}: the network of teacher {maker.model.name} is several ({type(network).__name__}), and the "
            "format is for one; expected format merged"
        )
    return network


def _no_adapters(name: str) -> UserError:
    return UserError(f"format {name}: this student is a whole network and has no adapters; expected format merged")


def _layers(maker: Maker, name: str) -> dict[str, Layer]:
    """The adapters by their layers' names in the network; UserError for others than plain LoRA."""
    if isinstance(maker.student, FullStudent):
        raise _no_adapters(name)
    network, weights = maker.model.denoiser.network, cast(Student, maker.student).trainable()
    found = {}
    for key, down in weights.items():
        layer, _, kind = key.partition(".lora_")
        if kind not in ("A.weight", "B.weight"):
            raise UserError(f"format {name}: the adapters hold {key}, which the format has no place for; try merged")
        if kind == "A.weight":
            scale = cast(Any, network.get_submodule(layer)).scaling["student"]
            found[layer] = Layer(down, weights[f"{layer}.lora_B.weight"], scale * down.shape[0])
    return found


def _folded(student: Student) -> Any:
    """The student's network alone; adapters are added to its weights and gone."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(student, FullStudent):
        return student.copy.network
    network: Any = student.denoisers()[0].network
    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            if not layer.merged:
                layer.merge(adapter_names=["student"])
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, layer.get_base_layer())
    return network


# What lies beside the weights ----------------------------------------------------------------------------------------


def _readme(maker: Maker, library: str, what: str, loading: str) -> str:
    card = _card(maker)
    height, width = card.size
    steps = ", ".join(map(str, card.steps_supported))
    head = ["---", "pipeline_tag: text-to-video", f"library_name: {library}" if library else "tags: [comfyui]", "---"]
    facts = (
        f"A student of {card.teacher.name} ({card.family}), distilled with {card.method}: {card.frames} frames of "
        f"{height} x {width} pixels at {card.fps:g} a second, in {steps} steps."
    )
    if not library:
        return "\n".join([*head, f"# {card.name}, LoRAs for ComfyUI", "", facts, "", what, "", _evolved(card), ""])
    kind = type(diffusers_scheduler(card)).__name__
    lines = ["import torch", "from diffusers import DiffusionPipeline" + (f", {kind}" if loading else "")]
    lines += ["from peft import PeftModel"] if library == "peft" else []
    lines += ["", 'folder = "."  # where this file lies']
    source = repr(_place(maker)) if loading else "folder"
    # stated, since weights stored in half precision would come up in a mixture
    lines += [f"pipeline = DiffusionPipeline.from_pretrained({source}, torch_dtype=torch.float32)"]
    if loading:
        lines += [loading, f'pipeline.scheduler = {kind}.from_pretrained(folder, subfolder="scheduler")']
    usual = 4 if 4 in card.steps_supported else max(card.steps_supported)
    times, number, rng = [], str(usual), "torch.Generator().manual_seed(0)"
    if kind == FLOW_LCM:  # which has no setting for the times, and whose steps the pipeline gives no generator
        times, number, rng = [
            "from functools import partial",
            "",
            f"steps = {usual}",
            f"sigmas = {own_levels(card)}  # the student's own times",
            "scheduler = pipeline.scheduler",
            "scheduler.set_timesteps = partial(type(scheduler).set_timesteps, scheduler, sigmas=sigmas)",
            f"generator = {rng}",
            "scheduler.step = partial(type(scheduler).step, scheduler, generator=generator)",
        ], "steps", "generator"  # fmt: skip
    sampling = [
        *times,
        "frames = pipeline(",
        f'    "a prompt", num_frames={card.frames}, height={height}, width={width}, num_inference_steps={number},',
        f'    guidance_scale={card.guidance_scale}, generator={rng}, output_type="np",',
        ").frames[0]",
    ]
    return "\n".join(
        [*head, f"# {card.name}, {what}", "", facts, "", "To load it:", "", "```python", *lines, "```", "",
        f"To sample it: the scheduler is {kind}, in its own settings; {steps} steps; "
        f"{'no guidance' if card.guidance_scale == 1 else 'guidance'} (`guidance_scale={card.guidance_scale}`).",
        "", "```python", *sampling, "```", "", _SEEDS]
    )  # fmt: skip


def _place(maker: Maker) -> str:
    """The teacher for `from_pretrained`: its hub id, or the folder that it was loaded from."""
    name = maker.model.name
    on_the_hub = "/" in name and SIGN not in name and not Path(name).expanduser().exists()
    return name if on_the_hub else str(maker.model.folder.resolve())


def _evolved(card: StudentCard) -> str:
    """Settings of the nodes that come nearest to the student's own sampler."""
    lcm = card.sampler["name"] == "consistency"
    betas = _EVOLVED_BETAS.get(str(card.scheduler.get("beta_schedule")), ("autoselect",) * 2)[0 if lcm else 1]
    steps = ", ".join(map(str, card.steps_supported))
    return (
        f"The base model and the motion module are the teacher's. Settings: sampler {'lcm' if lcm else 'euler'}, "
        f"scheduler sgm_uniform, {steps} steps, cfg {card.guidance_scale:g}, beta_schedule `{betas}`. ComfyUI spaces "
        "the steps a little otherwise than diffusers: its videos are alike, not equal."
    )


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, new or empty, when the block ends well. UserError as `output.whole`."""
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as temporary:
            made = Path(temporary) / "whole"
            made.mkdir()
            yield made
            for path in made.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors' files are readable for their owner alone
            if folder.exists():
                folder.rmdir()
            os.replace(made, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    except SafetensorError as error:  # how its writer says that the disk is full
        raise UserError(f"cannot write {folder}: {error}; free some space and run the command again") from error
