"""Samplers, one file each, found by name: a new file here with a `Sampler` subclass is all that it takes."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from typing import Any

from mcm.errors import UserError, nearest, one_of
from mcm.samplers.base import Sampler, noise_like
from mcm.samplers.loop import sample

__all__ = ["Sampler", "noise_like", "sample", "sampler", "samplers"]


def samplers() -> dict[str, type[Sampler]]:
    """Every sampler's class by its name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {kind.name: kind for kind in Sampler.__subclasses__()}


def sampler(name: str, **settings: Any) -> Sampler:
    """The sampler called "ddim", "dpm++", "consistency" or "euler", with the class's fields as settings.

    Raises UserError on an unknown name, setting or value.
    """
    known = samplers()
    if name not in known:
        raise one_of("sampler", name, known)
    allowed = [field.name for field in fields(known[name])]
    for key in settings:
        if key not in allowed:
            listed = ", ".join(allowed) or "none"
            raise UserError(
                f"sampler {name!r} has no setting {key!r}: it knows {listed}{nearest(key, allowed)}"
            )
    return known[name](**settings)
