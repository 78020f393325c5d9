"""MCM: turn a text-to-video diffusion model into a 1-8 step student.

    import mcm
    mcm.prepare("clips/", "prepared", "pocket-animatediff")
    mcm.distill("pocket-animatediff", out="runs/first")
    for video in mcm.generate("runs/first", ["a woman in red waves"], seeds=[0], steps=4): ...
    report = mcm.evaluate("runs/first", reference="clips/", steps=[4])
    verdict = mcm.verify_resume("pocket-animatediff")
    mcm.export("runs/first", "merged", out="exports/first")

Nothing heavy is imported before one of these is first touched.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcm.distill import distill as distill
    from mcm.evaluation.run import evaluate as evaluate
    from mcm.export import export as export
    from mcm.generate import generate as generate
    from mcm.planning import plan as plan
    from mcm.prepare import prepare as prepare
    from mcm.verify import verify_resume as verify_resume

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "evaluate", "export", "generate", "plan", "prepare", "verify_resume"]

_HOMES = {
    "distill": "mcm.distill",
    "generate": "mcm.generate",
    "evaluate": "mcm.evaluation.run",
    "export": "mcm.export",
    "prepare": "mcm.prepare",
    "verify_resume": "mcm.verify",
    "plan": "mcm.planning",
}


class _Verb(ModuleType):
    """A module that can be called, which calls the function of its own name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """Python binds a submodule to the package under the submodule's name.

    So `mcm.distill` is the function or the module `mcm/distill.py`, whichever was touched last, unless the
    module can be called: then it is both, whatever the order of imports.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOMES.get(name) == f"{__name__}.{name}" and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return home if isinstance(home, _Verb) else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


sys.modules[__name__].__class__ = _Package
