"""The typed, strict description of a run: what is distilled, by which method, from which data, how long.

A recipe comes from a function in `mcm.recipes` or from a YAML or JSON file, is changed by `apply_overrides`,
and is saved resolved beside what it made. Unknown settings are errors, never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from mcm.errors import UserError, one_of
from mcm.output import claim, holds, to_yaml, write_text
from mcm.settings import Group, checked, from_text, height_width, settings, unknown

if TYPE_CHECKING:
    from mcm.methods.base import Method

RECIPE_FILE = "recipe.yaml"

# Importing the methods takes seconds (torch and the networks), so the one whose defaults stand below is not.
_DEFAULT_METHOD = "mcm"


def _own_defaults(method: str) -> dict[str, Any]:
    """What makes a method what it is where that differs from the defaults below; UserError if unknown."""
    if method == _DEFAULT_METHOD:
        return {}
    from mcm.methods import methods

    if method not in (known := methods()):
        raise one_of("method", method, known)
    return known[method].own_defaults


Size = Annotated[tuple[int, int], BeforeValidator(height_width)]


class MethodConfig(Group):
    """The paper's symbols (arXiv 2406.06890). w is its equations' guidance: diffusers' scale minus 1."""

    name: str = Field(default=_DEFAULT_METHOD, min_length=1, description="the method: `mcm list` names them")
    solver_steps: int = Field(default=50, ge=1, le=1000, description="N, points of the teacher's solver grid")
    solver: Literal["ddim", "midpoint"] = Field(
        default="ddim", description="the teacher's step on that grid; midpoint: second order, twice the passes"
    )
    zero_terminal_snr: bool = Field(
        default=False, description="trajectories start from pure noise, as generation does"
    )
    guidance_min: float = Field(
        default=5.0, ge=0, description="smallest w; diffusers' guidance_scale is w + 1"
    )
    guidance_max: float = Field(default=15.0, ge=0, description="largest w")
    sigma_data: float = Field(default=0.5, gt=0, description="d of the consistency function")
    timestep_scaling: float = Field(default=4.0, gt=0, description="k of the consistency function")
    huber_c: float = Field(default=1e-3, gt=0, description="c of the pseudo-Huber distance")
    motion: str = Field(
        default="learnable", min_length=1, description="motion representation: `mcm list` names them"
    )
    adversary: Literal["none", "video", "pictures"] = Field(
        default="video", description="real frames of the discriminator: none, the videos', or pictures"
    )
    adversarial_loss: Literal["hinge", "wasserstein", "bce"] = Field(
        default="hinge", description="kind of GAN loss"
    )
    adversarial_weight: float = Field(default=1.0, ge=0, description="of the student's adversarial loss")
    adversarial_start: float = Field(
        default=0.0, ge=0, lt=1, description="share of the run until the student hears the discriminator"
    )
    gradient_penalty: float = Field(default=1e-5, ge=0, description="weight of the penalty on features")
    matching_weight: float = Field(
        default=0.0, ge=0,
        description="weight of real frames under other captions than theirs, which the discriminator shall not take "
        "for real",
    )  # fmt: skip
    frames_picked: int = Field(default=2, ge=1, description="frames of each clip that the discriminator sees")
    generated_probability: float = Field(
        default=0.5, ge=0, le=1, description="lambda, share of clips that the student makes itself"
    )
    generated_ramp: float = Field(
        default=0.0, ge=0, le=1, description="share of the run over which lambda rises from 0 to that"
    )
    trajectory: Literal["one-step", "multi-step"] = Field(default="one-step", description="how it makes them")
    trajectory_steps: int = Field(default=4, ge=1, le=50, description="steps of a multi-step trajectory")
    target_decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="of the averaged target; none: the student itself, without gradient",
    )
    head_decay: float = Field(default=0.95, ge=0, lt=1, description="of the averaged learnable motion head")

    picture_share: float = Field(
        default=0.5, ge=0, lt=1, description="of the updates, spent on pictures first (animatelcm)"
    )

    final_steps: int = Field(default=4, ge=1, description="the fewest steps (animatediff-lightning)")
    adversarial_rate: float = Field(
        default=1.0, gt=0, le=1,
        description="share of optim.lr where the adversary alone teaches the student (animatediff-lightning)",
    )
    bases: tuple[str, ...] = Field(
        default=(),
        description="image models that the layers over time are trained on in turn (animatediff-lightning): folders of "
        'UNets, LoRAs, hub ids, and "teacher" for the teacher\'s own; none: that alone',
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {**_own_defaults(str(values.get("name", _DEFAULT_METHOD))), **values}

    @model_validator(mode="after")
    def _consistent(self) -> MethodConfig:
        if self.guidance_min > self.guidance_max:
            raise ValueError(
                f"method.guidance_min is {self.guidance_min:g} and method.guidance_max is "
                f"{self.guidance_max:g}: the smallest may not exceed the largest"
            )
        if self.name != _DEFAULT_METHOD or self.bases:
            self.build()
        return self

    def build(self) -> Method:
        """The method with these symbols. Raises UserError for what it refuses, such as an unknown motion."""
        from mcm.methods import method

        return method(**self.model_dump())


class DataConfig(Group):
    """Where clips, pictures and prompts come from. Paths are relative to where the command is run.

    A folder, a table, WebDataset tars, a URL of these, or the laboratory's own endless renderings:
    "pocket:broadcast", "pocket:studio", "pocket:toon", "pocket:relief" (of which prompts are the captions).
    """

    videos: str | None = Field(default=None, description="folder, table, tar or URL of videos with captions")
    images: str | None = Field(
        default=None, description="folder, table, tar or URL of pictures whose look the frames shall have"
    )
    prompts: str | None = Field(
        default=None,
        description="file of prompts; without videos the teacher's own samples are the clips (with each base its own)",
    )
    stride: int | None = Field(default=None, ge=1, description="take every so manieth frame; not with fps")
    fps: float | None = Field(
        default=None, gt=0, description="frames a second that clips are read at; not with stride"
    )
    frames: int | None = Field(default=None, ge=1, description="frames of a clip; none: as the teacher")
    size: Size | None = Field(default=None, description="height and width in pixels; none: as the teacher")
    laboratory_clips: int = Field(
        default=512, ge=1, description="how many of the laboratory's endless films a run takes"
    )
    cache: bool = Field(default=True, description="keep the encoded clips, so that each is encoded once")

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.stride is not None and self.fps is not None:
            raise ValueError(f"data.stride is {self.stride} and data.fps is {self.fps:g}: give one of them")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"data.size is {self.size[0]}x{self.size[1]}: both must be 1 or more")
        if self.videos is None and self.prompts is None:
            raise ValueError("nothing to learn from: set data.videos (--videos) or data.prompts (--prompts)")
        return self


class StudentConfig(Group):
    """What of the teacher the student changes."""

    kind: Literal["lora", "full"] = Field(default="lora", description="adapters, or a copy of all weights")
    rank: int = Field(default=64, ge=1, description="of the adapters")
    alpha: float = Field(default=64.0, gt=0, description="of the adapters, which act times alpha / rank")
    targets: Literal["all", "attention"] = Field(
        default="all", description="adapted layers: every linear and 2-D convolution, or attention's alone"
    )
    start: str | None = Field(
        default=None, description="student of this teacher, kind and rank to go on from: a folder, or one of `mcm list`"
    )


class OptimConfig(Group):
    """AdamW, one for the student and one for the discriminator."""

    name: Literal["adamw", "adamw-fused", "adamw-8bit"] = Field(
        default="adamw", description="adamw-fused: in one kernel; adamw-8bit: a small state (bitsandbytes, GPU)"
    )
    lr: float = Field(default=5e-6, gt=0, description="the student's learning rate")
    discriminator_lr: float = Field(default=5e-5, gt=0, description="the discriminator's learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="of AdamW")
    weight_decay: float = Field(default=1e-2, ge=0, description="of AdamW")
    warmup: int = Field(default=500, ge=0, description="updates until the full learning rate")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="of the rate after the warm-up"
    )
    clip: float = Field(default=10.0, gt=0, description="largest norm of the gradient")

    @model_validator(mode="after")
    def _consistent(self) -> OptimConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"optim.betas are {self.betas[0]:g} and {self.betas[1]:g}: expected 0 to below 1"
            )
        return self


class TrainingConfig(Group):
    """How long, and what is written on the way."""

    updates: int = Field(default=1000, ge=1, description="optimizer steps of the student")
    batch: int = Field(default=8, ge=1, description="clips of one forward pass on one device")
    accumulation: int = Field(default=1, ge=1, description="forward passes of one update on one device")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="of everything random")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of forward passes; CPU: fp32"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="keep fewer activations and compute them again: less memory, slower"
    )
    compile: bool = Field(
        default=False, description="torch.compile for the student and its teacher: slow to begin, for long runs"
    )
    rank_timeout: float = Field(
        default=600.0, gt=0, description="seconds that one of several processes waits for the others"
    )
    average: float | None = Field(
        default=None, gt=0, le=0.28,
        description="of the student's weights over the run: its relative width; none: the last weights are the student",
    )  # fmt: skip
    save_every: int = Field(default=100, ge=1, description="updates between checkpoints")
    keep: int = Field(default=2, ge=1, description="checkpoints kept")
    preview_every: int = Field(default=100, ge=0, description="updates between previews; 0: none")
    preview_prompts: tuple[str, ...] | None = Field(
        default=None, description="none: some of the data's captions"
    )
    log_every: int = Field(default=10, ge=1, description="updates between lines of the log")
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = Field(
        default="tensorboard", description="where the curves go besides log.jsonl"
    )


class DiscriminatorConfig(Group):
    """The frame discriminator: heads on the features of a frozen network."""

    backbone: str = Field(
        default="facebook/dinov2-small", min_length=1, description="zoo name, folder or hub id"
    )
    head_width: int = Field(default=64, ge=1, description="channels of a head")
    augmentation: float = Field(
        default=1.0, ge=0, le=1, description="strength of DiffAugment on its frames; 0: none"
    )
    augmentation_policy: tuple[Literal["color", "translation", "cutout"], ...] = Field(
        default=("color", "translation", "cutout"),
        description="kinds of DiffAugment; colours hide from the discriminator whether brightness and contrast drift",
    )


class Recipe(Group):
    """One run, described whole."""

    name: str = Field(default="distilled", pattern=r"^\w[\w.+-]*$", description="of the student")
    teacher: str = Field(
        min_length=1,
        description='zoo name, diffusers folder or hub id; "BASE+ADAPTER": Stable Diffusion and a motion adapter',
    )
    method: MethodConfig = Field(default_factory=MethodConfig)
    data: DataConfig
    student: StudentConfig = Field(default_factory=StudentConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    discriminator: DiscriminatorConfig = Field(default_factory=DiscriminatorConfig)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.method.adversary == "pictures" and self.data.images is None:
            raise ValueError(
                'method.adversary is "pictures" and there are none: set data.images (--images), or '
                'method.adversary to "video" or "none"'
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain data, as they stand in a file."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """All settings as YAML; `read_recipe` reads it back equal."""
        return to_yaml(self.to_dict())

    def save(self, path: Path) -> None:
        """Write the YAML whole or not at all. Raises UserError where the disk refuses."""
        write_text(path, self.to_yaml())

    def may_use(self, folder: Path) -> bool:
        """Whether `folder` holds this very run, to go on with. UserError if it holds anything else."""
        return holds(folder, self.to_dict(), RECIPE_FILE, _usual())

    def claim(self, folder: Path) -> bool:
        """Make `folder` this run's own by writing recipe.yaml into it; True if it was that already.

        Raises UserError as `may_use` does, and where the disk refuses.
        """
        return claim(folder, self.to_dict(), RECIPE_FILE, "`mcm distill` with this file repeats the run.", _usual())


def _usual() -> dict[str, Any]:
    """What settings stand for in a recipe that was written before there were such: nothing else than then."""
    return {name: field.default for name, field in settings(Recipe) if not field.is_required()}


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a .yaml, .yml or .json file; a recipe without a name is called as its file.

    Raises UserError where the file is missing, is no mapping of settings, or has an unknown or wrong setting.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the recipe {path} cannot be read as {path.suffix[1:]}: {reason}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} is no recipe: expected settings such as `teacher: pocket-animatediff`")
    try:
        return checked(Recipe, {"name": path.stem.replace(" ", "-"), **tree})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def apply_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed, by dotted names: {"optim.lr": "1e-4", "data.size": (64, 64)}.

    Texts are read as the setting's type: "1e-4", "true", "64x64", "0.9,0.99", "none" where none is allowed.
    A changed method.name brings that method's own defaults for what is not overridden.

    Raises UserError for an unknown name ('unknown setting "optim.lrr": did you mean "optim.lr"?'), or a value
    that does not fit, naming the setting, what was expected and what was given.
    """
    fields = dict(settings(Recipe))
    given = {key.replace("-", "_"): value for key, value in overrides.items()}
    for key in given:
        if key not in fields:
            raise unknown(key, Recipe)
    tree = recipe.model_dump()
    method = str(given.get("method.name", recipe.method.name))
    if method != recipe.method.name:
        for key in {**_own_defaults(method), **_own_defaults(recipe.method.name)}:
            tree["method"].pop(key)
    for key, value in given.items():
        *groups, leaf = key.split(".")
        place = tree
        for group in groups:
            place = place[group]
        place[leaf] = from_text(value, fields[key]) if isinstance(value, str) else value
    return checked(Recipe, tree)
