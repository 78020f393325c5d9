"""Published runs, one module each, found by name: a new file here with a function `recipe()` is all it takes.

The module `pocket_animatediff` is the recipe "pocket-animatediff", `wan_1_3b` is "wan-1.3b"; one that begins with _ is
none.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

from mcm.errors import UserError, nearest
from mcm.recipe import RECIPE_FILE, Recipe, read_recipe


def recipes() -> dict[str, str]:
    """Every recipe's name with the first line of its description."""
    return {name: (_module(name).__doc__ or "").strip().partition("\n")[0] for name in _names()}


def load_recipe(name: str | Path) -> Recipe:
    """The recipe of that name, of a .yaml or .json file, or of a run's folder (its recipe.yaml).

    Raises UserError for an unknown name (the nearest is named), a missing file, a wrong setting.
    """
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml", ".json"):
        return read_recipe(path)
    if path.is_dir() and (path / RECIPE_FILE).is_file():
        return read_recipe(path / RECIPE_FILE)
    known = _names()
    if str(name) in known:
        return _module(str(name)).recipe()
    raise UserError(
        f"unknown recipe {str(name)!r}: expected one of {', '.join(known)}, or a .yaml or .json file"
        f"{nearest(str(name), known)}"
    )


def _names() -> list[str]:
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(
        re.sub(r"(?<=\d)_(?=\d)", ".", name).replace("_", "-") for name in modules if not name.startswith("_")
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_').replace('.', '_')}")
