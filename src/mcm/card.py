"""The student's card: what is needed to sample a student rightly, written once by training, read by all.

It is the only home of these facts. (The method's first published code trained on one schedule of betas and
sampled on another; here there is only one place to look.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from mcm.errors import UserError, nearest
from mcm.output import write_json
from mcm.settings import Group, main_fault

CARD = "card.json"
VERSION = 1


class Teacher(Group):
    """The model whose weights the student changes."""

    name: str = Field(min_length=1, description="a zoo name, a folder or a hub id")
    fingerprint: str = Field(
        pattern="^[0-9a-f]{64}$", description="`mcm.models.fingerprint` of its denoising network"
    )


class Weights(Group):
    """Where the student's own weights lie."""

    kind: Literal["lora", "full"] = Field(description="adapters on the teacher, or a whole network")
    file: str = Field(min_length=1, description="safetensors, in the card's own folder")
    rank: int | None = Field(default=None, ge=1, description="of the adapters")
    alpha: float | None = Field(default=None, gt=0, description="of the adapters: acting times alpha / rank")

    @field_validator("file")
    @classmethod
    def _beside_the_card(cls, file: str) -> str:
        # A card may come from anywhere; it must not be able to name a file elsewhere.
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise ValueError("expected the name of a .safetensors file in the card's own folder")
        return file

    @model_validator(mode="after")
    def _whole(self) -> Weights:
        if (self.kind == "lora") != (self.rank is not None and self.alpha is not None):
            raise ValueError('"lora" weights have rank and alpha, "full" weights have neither')
        return self


class Provenance(Group):
    """How the student was made."""

    recipe: dict[str, Any] = Field(description="the resolved recipe")
    versions: dict[str, str | None] = Field(description="of mcm, Python and the libraries")
    date: str = Field(description="UTC, ISO 8601")
    updates: int = Field(ge=0, description="optimizer steps of the student")
    seed: int = Field(ge=0)


class StudentCard(Group):
    """How to sample a student. `load` and `save` are the only ways to and from a file."""

    version: int = Field(default=VERSION, ge=1, description="of this format")
    name: str = Field(min_length=1)
    teacher: Teacher
    family: str = Field(min_length=1, description='the teacher\'s architecture, for instance "animatediff"')
    method: str = Field(min_length=1, description='how it was distilled, for instance "mcm"')
    scheduler: dict[str, Any] = Field(
        min_length=1, description="diffusers' scheduler configuration: betas and prediction type"
    )
    sampler: dict[str, Any] = Field(description='{"name": ..., its settings}, timestep_scaling excepted')
    timestep_scaling: float | None = Field(
        default=None, gt=0, description="k of the consistency function; none for students that have none"
    )
    guidance_scale: float = Field(default=1.0, ge=0, description="diffusers' convention: 1 is no guidance")
    frames: int = Field(ge=1)
    size: tuple[int, int] = Field(description="height and width in pixels")
    fps: float = Field(gt=0)
    weights: Weights
    steps_supported: tuple[int, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    provenance: Provenance

    @field_validator("sampler")
    @classmethod
    def _named(cls, sampler: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(sampler.get("name"), str):
            raise ValueError('expected a "name" among its keys')
        if "timestep_scaling" in sampler:
            raise ValueError("timestep_scaling stands in the card itself, and only there")
        return sampler

    @field_validator("size", "steps_supported")
    @classmethod
    def _positive(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if min(values) < 1:
            raise ValueError("expected whole numbers of 1 or more")
        return values

    def sampler_settings(self) -> dict[str, Any]:
        """What the sampler called `sampler["name"]` is made with."""
        settings = {key: value for key, value in self.sampler.items() if key != "name"}
        if self.timestep_scaling is not None:
            settings["timestep_scaling"] = self.timestep_scaling
        return settings

    def save(self, folder: str | Path) -> Path:
        """Write card.json into `folder`, whole or not at all. UserError where the disk refuses."""
        path = Path(folder) / CARD
        write_json(path, self.model_dump(mode="json"))
        return path

    @classmethod
    def load(cls, place: str | Path) -> StudentCard:
        """Read the card of a student's folder, of a run's folder (its `student/`), or a card.json itself.

        Raises UserError where there is none, it is damaged, of a newer version, or says something that this
        version does not know.
        """
        path = card_path(place)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the student's card {path}: {error.strerror or error}") from error
        except ValueError as error:  # bad JSON or bad UTF-8
            raise UserError(
                f"the student's card {path} is damaged ({error}): distil again or restore the file"
            ) from error
        if not isinstance(content, dict):
            raise UserError(f"{path} is no student's card: expected a JSON object")
        version = content.get("version")
        if isinstance(version, int) and version > VERSION:
            raise UserError(
                f"the student's card {path} is of version {version}, made by a newer mcm (this one reads "
                f"version {VERSION}): upgrade mcm"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"the student's card {path}: {_fault(cls, error)}") from error


def card_path(place: str | Path) -> Path:
    """The card.json of a student's folder, of a run's folder, or the file itself; UserError for none."""
    place = Path(place).expanduser()
    if place.is_file():
        return place
    for path in (place / CARD, place / "student" / CARD):
        if path.is_file():
            return path
    if not place.exists():
        raise UserError(f"there is no student at {place}: no such folder; expected one that holds a {CARD}")
    raise UserError(f"the folder {place} holds no student: expected a {CARD}, which `mcm distill` writes")


def _fault(model: type[BaseModel], error: ValidationError) -> str:
    """The first fault in one clause."""
    first = main_fault(error)
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parent: Any = model
        for part in first["loc"][:-1]:
            parent = parent.model_fields[part].annotation
        return f'unknown key "{key}"{nearest(str(first["loc"][-1]), parent.model_fields)}'
    if first["type"] == "missing":
        return f'"{key}" is missing'
    return f'"{key}": {first["msg"].removeprefix("Value error, ")}' if key else first["msg"]
