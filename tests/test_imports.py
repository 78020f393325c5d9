"""The architecture: imports point down only, siblings never import each other, `import mcm` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mcm

SOURCE = Path(mcm.__file__).parent
TESTS = Path(__file__).parent
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "cv2",
    "av",
    "numpy",
    "PIL",
    "tensorboard",
    "gradio",
    "pandas",
}

# What each room may import besides itself. `mcm` alone is the package's own light __init__.
BASE = {"mcm", "errors", "settings", "output", "card"}
MATHEMATICS = {"errors", "diffusion", "motion", "adversarial"}
METHODS = {*BASE, *MATHEMATICS, "models", "samplers", "data", "methods"}
RUNS = {*METHODS, "recipe", "generate", "evaluation", "training"}
MAY_IMPORT: dict[str, set[str]] = {
    "mcm": set(),
    "errors": set(),
    "settings": {"errors"},
    "output": {"errors"},
    "card": {"errors", "settings", "output"},
    "diffusion": {"errors"},
    "motion": {"errors", "diffusion"},
    "adversarial": {"errors", "diffusion"},
    "models": {*BASE, *MATHEMATICS},
    "samplers": {*BASE, *MATHEMATICS},
    "data": {*BASE, *MATHEMATICS},
    "methods": METHODS,
    "recipe": METHODS,
    "driving": {*BASE, *MATHEMATICS, "models", "data"},
    "generate": {*METHODS, "driving"},
    "export": {*METHODS, "generate"},
    "encoding": {*BASE, *MATHEMATICS, "models", "data"},
    "prepare": {*BASE, *MATHEMATICS, "models", "data", "encoding"},
    # Measuring reads the iterator of generate; training looks at its own previews with the same measures.
    "evaluation": {*METHODS, "recipe", "generate"},
    "training": {*METHODS, "recipe", "generate", "evaluation"},
    "recipes": RUNS,
    "distill": {*RUNS, "recipes", "encoding"},
    "planning": {*RUNS, "recipes"},
    "bench": {*RUNS, "recipes", "distill"},
    "pocket": {*RUNS, "recipes", "distill", "bench"},
    "verify": {*RUNS, "recipes", "distill"},
    "app": {"errors", "output", "data", "samplers", "generate"},
    "cli": {*RUNS, "recipes", "distill", "bench", "export", "planning", "prepare", "verify", "app"},
    "__main__": {"cli"},
}
# The laboratory is data like any other: only where a name becomes a folder or a source is it known of.
LABORATORY = {
    "mcm.pocket.zoo": {"models", "generate", "distill", "cli"},
    "mcm.pocket.sources": {"data", "cli"},
    "mcm.pocket.suite": {"bench"},
}
# Commands of the laboratory, which stand on top as the verbs do.
PROGRAMS = {"mcm.pocket.quickstart", "mcm.pocket.train_zoo"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports anywhere; `from a import b` is a.b where that is a module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            inside = [name for name in submodules if name in MODULES]
            yield from inside
            if len(inside) < len(submodules):
                yield node.module


def room(module: str) -> str:
    """ "mcm.samplers.ddim" -> "samplers"; "mcm" -> "mcm"."""
    return module.split(".")[1] if "." in module else module


def plugins() -> set[str]:
    """The modules that are found by name: families, samplers and methods, one file each."""
    found = set()
    for name, path in MODULES.items():
        body = tree(path).body
        assigned = {
            target.id
            for node in body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        bases = {
            base.id
            for node in body
            if isinstance(node, ast.ClassDef)
            for base in node.bases
            if isinstance(base, ast.Name)
        }
        wanted = {
            "models": "FAMILY" in assigned,
            "samplers": "Sampler" in bases,
            "methods": "Method" in bases,
        }
        if wanted.get(room(name), False):
            found.add(name)
    return found


def test_every_module_stands_in_a_known_room() -> None:
    assert {room(name) for name in MODULES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    here = room(module)
    if module == "mcm":
        return  # its lazy calls name their homes for type checkers alone
    for name in imported(MODULES[module]):
        if name.split(".")[0] != "mcm" or room(name) == here:
            continue
        if module in PROGRAMS and room(name) == "cli":
            continue
        if room(name) == "pocket":
            assert here in LABORATORY.get(name, set()), f"{module} knows of {name}"
        else:
            assert room(name) in MAY_IMPORT[here], f"{module} imports {name}: not below {here}"


def test_siblings_never_import_each_other() -> None:
    found = plugins()
    assert {"mcm.models.animatediff", "mcm.samplers.ddim", "mcm.methods.lcm"} <= found
    for module in found:
        for name in imported(MODULES[module]):
            assert not (name in found and room(name) == room(module)), f"{module} imports its sibling {name}"


def test_families_and_methods_are_found_never_named() -> None:
    found = {name for name in plugins() if room(name) in ("models", "methods")}
    for module, path in MODULES.items():
        if room(module) == "pocket":
            continue  # it builds the small networks of the families that it ships
        assert not found & set(imported(path)), f"{module} names {found & set(imported(path))}"


def test_no_wildcards_no_torchvision_no_pickle() -> None:
    for path in [*MODULES.values(), *TESTS.rglob("*.py")]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), f"{path}: wildcard import"
        if path.is_relative_to(SOURCE):
            banned = {"torchvision", "pickle", "timm", "open_clip"}
            assert not banned & {name.split(".")[0] for name in imported(path)}, path
            assert "torch.load(" not in path.read_text(encoding="utf-8"), (
                f"{path}: weights are safetensors only"
            )


def test_the_mathematics_knows_no_device() -> None:
    for module, path in MODULES.items():
        if room(module) not in ("diffusion", "motion", "adversarial", "methods", "samplers"):
            continue
        for node in ast.walk(tree(path)):
            named = node.value if isinstance(node, ast.Constant) else getattr(node, "attr", "")
            assert not (isinstance(named, str) and named.startswith("cuda")), f"{module} names a device"


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import mcm", {"pydantic", "cyclopts", "rich", "yaml"}),
        ("from mcm.cli import app; app(['--help'])", {"pydantic", "yaml"}),
        ("from mcm.cli import app; app(['distill', '--help'])", set()),
        ("from mcm.recipes import load_recipe; load_recipe('pocket-animatediff')", set()),
        ("import mcm.card, mcm.data", set()),
        ("from mcm.cli import app; app(['demo', '--help'])", set()),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str, light: set[str]) -> None:
    probe = f"import sys\n{code}\nprint('LOADED', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert not loaded & (HEAVY | light)


def test_a_verb_is_its_module_and_its_function() -> None:
    # The submodule is imported first: Python then binds it to the package in the place of the lazy call.
    code = """
import mcm.generate as module
from mcm.generate import save_video
import mcm
assert mcm.generate is module and mcm.generate.save_video is save_video
try:
    mcm.generate("no/such/model", ["a"], seeds=[0], steps=1)
except mcm.generate.UserError as error:
    print("ASKED", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("ASKED"), done.stderr
