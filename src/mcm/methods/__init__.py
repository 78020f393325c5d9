"""Distillation methods, one file each, found by name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from mcm.errors import UserError, one_of
from mcm.methods.base import Method


def methods() -> dict[str, type[Method]]:
    """Every method by its name: the concrete `Method` classes of this package's modules."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Method) and "name" in vars(value):
                found[value.name] = value
    return found


def method(name: str, **settings: Any) -> Method:
    """The method called `name` with the given settings; the rest are its own defaults.

    Raises:
        UserError: for an unknown name, with the nearest known one, and for what the method refuses.
    """
    known = methods()
    if name not in known:
        raise one_of("method", name, known)
    if settings.get("bases") and not known[name].over_bases:
        able = ", ".join(sorted(other for other, kind in known.items() if kind.over_bases))
        raise UserError(f'method "{name}" trains on the teacher\'s own image model alone: method.bases is for {able}')
    return known[name](**{**known[name].own_defaults, **settings})
