"""Strict settings in groups: their dotted names, what each may be in words, and errors of one line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from mcm.errors import UserError


class Group(BaseModel):
    """Settings that cannot be changed once made, and of which no unknown one is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Settings = TypeVar("Settings", bound=Group)


def height_width(value: Any) -> Any:
    """256 and "256" mean a square, "256x384" is height x width; anything else is pydantic's to judge."""
    if isinstance(value, str):
        value = [part.strip() for part in value.lower().replace("x", ",").split(",")]
        value = value * 2 if len(value) == 1 else value
    return (value, value) if isinstance(value, int) else value


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every single setting by its dotted name ("optim.lr"), with its description, default and range."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def expected(field: FieldInfo) -> str:
    """What a setting may be, in words: "a number above 0", "one of cosine, constant"."""
    base, optional = _base(field)
    if get_origin(base) is Literal:
        words = "one of " + ", ".join(get_args(base))
    elif get_origin(base) is tuple and get_origin(get_args(base)[0]) is Literal:
        words = f"some of {', '.join(get_args(get_args(base)[0]))}, with commas between them (or a JSON list)"
    elif get_origin(base) is tuple:
        words = {int: "HEIGHTxWIDTH", float: "two numbers with a comma between them"}.get(
            get_args(base)[0], "texts with commas between them (or a JSON list)"
        )
    else:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[base]
    sides = ("ge", "gt", "le", "lt")
    bounds = {side: getattr(mark, side) for mark in field.metadata for side in sides if hasattr(mark, side)}
    if {"ge", "le"} <= bounds.keys():
        words += f" from {bounds['ge']} to {bounds['le']}"
    else:
        said = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
        words += " and".join(f" {said[side]} {bounds[side]}" for side in sides if side in bounds)
    return words + (", or none" if optional else "")


def from_text(text: str, field: FieldInfo) -> Any:
    """A text from the command line, prepared for pydantic, which reads numbers and truth values from texts.

    (PyYAML would not do: it takes 3e-4 for a text and a folder called 2024 for a number.)
    """
    base, optional = _base(field)
    if optional and text.lower() in ("none", "null"):
        return None
    if get_origin(base) is tuple and get_args(base)[0] is not int:
        if text.startswith("["):
            try:
                return json.loads(text)
            except ValueError:
                return text  # pydantic's error says what was expected instead
        return [part.strip() for part in text.split(",")]
    return text


def checked(model: type[Settings], tree: Mapping[str, Any]) -> Settings:
    """The settings of this tree; UserError with the first fault in one line, and how many more there are.

    A check of the model's own must name in its message the settings that it is about.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        others = error.error_count() - 1
        more = f" (and {others} more)" if others else ""
        raise UserError(_fault(model, tree, main_fault(error)) + more) from error


def main_fault(error: ValidationError) -> Mapping[str, Any]:
    """The fault to tell first: an unknown name before others, for a misspelt setting is missing, too."""
    faults = error.errors(include_url=False)
    return dict(next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0]))


def unknown(key: str, model: type[BaseModel]) -> UserError:
    """The error for a name that is no setting: the nearest one, or for a group what is in it."""
    known = [name for name, _ in settings(model)]
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return UserError(f'"{key}" is a group of settings: expected one of {", ".join(inside)}')
    # The right word in the wrong group first (--training.lr, or lr alone), then the nearest spelling.
    by_word = {name.rpartition(".")[2]: name for name in known}
    word = key.rpartition(".")[2]
    near = [by_word[word]] if word in by_word else difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near = near or [by_word[k] for k in difflib.get_close_matches(word, by_word, n=1, cutoff=0.6)]
    hint = f'did you mean "{near[0]}"?' if near else "`mcm distill --help` lists them all"
    return UserError(f'unknown setting "{key}": {hint}')


def _base(field: FieldInfo) -> tuple[Any, bool]:
    """The setting's type without `| None`, and whether none is allowed."""
    kind = field.annotation
    if get_origin(kind) in (None, tuple, Literal):
        return kind, False
    (base,) = [part for part in get_args(kind) if part is not NoneType]
    return (get_args(base)[0] if get_origin(base) is Annotated else base), True


def _fault(model: type[BaseModel], tree: Mapping[str, Any], fault: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"] if isinstance(part, str))
    fields = dict(settings(model))
    if fault["type"] == "extra_forbidden":
        return str(unknown(key, model))
    if fault["type"] == "value_error" and key not in fields:
        return str(fault["ctx"]["error"])
    given: Any = tree
    for part in key.split("."):
        if not isinstance(given, Mapping) or part not in given:
            return f'the setting "{key}" is missing'
        given = given[part]
    said = json.dumps(given, ensure_ascii=False, default=str)
    said = said if len(said) <= 80 else said[:77] + "..."
    return f'setting "{key}": expected {expected(fields[key]) if key in fields else "a group"}, got {said}'
