"""Every command line and piece of Python on the pages is one that this version knows; nothing is run here.

Shell lines go through the real command line up to the library call, which is bound to its real signature; calls in
Python are bound to theirs; inline options and settings are looked up; YAML is read as a recipe.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError
from snippets import PAGES, ROOT, Block, blocks, read, spans

import mcm
from mcm.cli import VERBS, _dotted, app, main
from mcm.recipe import Recipe, apply_overrides, read_recipe
from mcm.recipes import load_recipe
from mcm.settings import settings

LANGUAGES = {"bash", "python", "yaml", "text", "", "{ .text .equation }"}
CALLS = {
    "distill": "mcm.distill", "generate": "mcm.generate", "evaluate": "mcm.evaluation.run", "bench": "mcm.bench",
    "export": "mcm.export", "plan": "mcm.planning", "prepare": "mcm.prepare",
}  # fmt: skip
# Other programs that pages name, only in blocks that say why they are not run, and where each comes from.
OTHERS = {
    "tensorboard": "a dependency", "torchrun": "a dependency", "export": "the shell", "pip": "the reader's",
    "pipx": "the reader's", "pre-commit": "the reader's",
}  # fmt: skip
ENDLESS = {"demo"}  # verbs that only Ctrl-C ends
SETTINGS = dict(settings(Recipe))
GROUPED = re.compile(r"(method|data|student|optim|training|discriminator)\.\w+(=.*)?$")
TARGETS = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))


class Reached(BaseException):
    """The command line has come to its library call."""


@pytest.fixture(scope="module", autouse=True)
def everything_loaded() -> None:
    """A module first imported while calls are replaced would keep the replacements for the tests after."""
    for found in pkgutil.walk_packages(mcm.__path__, "mcm."):
        importlib.import_module(found.name)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that are read before any work, in which library calls end with `Reached`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red puppet walks\n")
    for block in blocks("yaml", "docs/tutorial.md"):
        (tmp_path / "own.yaml").write_text(block.text)
    for verb, module in CALLS.items():
        loaded = importlib.import_module(module)
        monkeypatch.setattr(loaded, verb, _bound(getattr(loaded, verb)))
    return tmp_path


def _bound(real: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(real)

    def reached(*args: Any, **kwargs: Any) -> None:
        signature.bind(*args, **kwargs)
        raise Reached

    return reached


def follow(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What stops a line of `mcm` before its library call; "" where nothing does."""
    try:
        main(words)
    except Reached:
        return ""
    except SystemExit as left:
        said = capsys.readouterr()
        return "" if left.code == 0 else said.err
    raise AssertionError("main returned")


def test_there_are_pages_and_every_block_has_a_language_that_is_checked() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/tutorial.md"} <= set(PAGES)
    for page in PAGES:
        for block in read(page)[0]:
            assert block.language in LANGUAGES, f"{block.place}: {block.language!r} is no language that is checked"
            if block.language in ("text", ""):
                lines = block.text.splitlines()
                code = [line for line in lines if re.match(r"\s*(\$ |mcm [a-z]|make [a-z]|import |from )", line)]
                assert not code, f"{block.place}: code in a block that nothing checks: {code}"


@pytest.mark.parametrize("block", blocks("bash"), ids=lambda block: block.place)
def test_shell(block: Block, stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = block.commands()
    assert commands, "an empty block"
    for words in commands:
        variables = [w for w in words if re.match(r"[A-Z_]+=", w)]
        words = words[len(variables) :] if words[0] in variables else words
        if words[0] == "mcm" and block.apart != "examples" and words[1] not in ENDLESS:
            assert follow(words[1:], capsys) == ""
        elif words[0] == "mcm":
            parsed(words)  # the examples' names are known where the examples lie: test_examples.py runs them
        elif words[0] == "make":
            made(words, variables)
        else:
            assert words[0] in OTHERS, f"no check for {words[0]}"
            assert block.apart, f"{words[0]} is not run, and no comment says why"
            if words[0] == "torchrun":  # what it starts is a line of mcm
                assert follow(words[words.index("mcm") + 1 :], capsys) == ""
            if words[0] == "tensorboard":
                assert entry_points(group="console_scripts", name="tensorboard")


def made(words: list[str], variables: list[str]) -> None:
    """`make`, dry: the targets are there, and so are the variables."""
    known = set(re.findall(r"(?m)^([A-Z_]+) [:?]?=", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert {v.partition("=")[0] for v in (*variables, *words) if "=" in v} <= known
    targets = [word for word in words[1:] if "=" not in word]
    assert set(targets) <= TARGETS
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def parsed(words: list[str]) -> None:
    """Options exist and fit; settings of a recipe, too. Names of models and files may be any."""
    plain = _dotted(words[1:]) if words[1:2] == ["distill"] else words[1:]
    try:
        _, bound, _ = app.parse_args(plain, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise AssertionError(f"{' '.join(words)}: {error}") from error
    for change in bound.arguments.get("changes", ()):
        assert change.partition("=")[0] in SETTINGS, f"{' '.join(words)}: no setting {change}"


def options(verb: str) -> set[str]:
    return {name for argument in app[verb].assemble_argument_collection() for name in argument.names}


@pytest.mark.parametrize("page", PAGES)
def test_inline_code(page: str) -> None:
    every = set().union(*(options(verb) for verb in VERBS)) | {"--help", "--version"}
    for span in spans(page):
        if span.startswith("mcm "):
            words = shlex.split(span)
            assert words[1] in {*VERBS, "--version"}, f"{page}: {span}"
            # Prose names a verb without what it must be given; with an option it is a whole line.
            if any(word.startswith("--") for word in words[2:]) and "--help" not in words:
                parsed_in_prose(words, page)
        elif span.startswith("make "):
            assert {word for word in shlex.split(span)[1:] if "=" not in word} <= TARGETS, f"{page}: {span}"
        elif re.match(r"--[\w-]+\.\w", span):
            known_setting(span.split()[0].removeprefix("--").partition("=")[0], f"{page}: {span}")
        elif re.match(r"--[a-z]", span):
            for option in re.findall(r"--[a-z][\w.-]*", span):
                if "." in option:
                    known_setting(option.removeprefix("--"), f"{page}: {span}")
                else:
                    assert option in every, f"{page}: no verb has {option}"
        elif GROUPED.match(span) and not _module(span):
            known_setting(span.partition("=")[0], f"{page}: {span}")


def _module(name: str) -> bool:
    return (ROOT / "src" / "mcm" / Path(*name.split("."))).with_suffix(".py").is_file()


def known_setting(name: str, where: str) -> None:
    assert name in SETTINGS, f"{where}: no setting {name}"


def parsed_in_prose(words: list[str], page: str) -> None:
    for word in words[2:]:
        if word.startswith("--") and "." in word:
            known_setting(word.removeprefix("--").partition("=")[0], page)
        elif word.startswith("--"):
            assert word.partition("=")[0] in options(words[1]), f"{page}: mcm {words[1]} has no {word}"


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_yaml_is_a_recipe(block: Block, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(block.text)
    assert read_recipe(tmp_path / "own.yaml").name == "own"


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_python_names_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text)
    names: dict[str, Any] = {}
    for node in tree.body:  # imports of the block, for real
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), block.place, "exec"), names)
    calls = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := _resolved(node.func, names)) is not None:
            calls += 1
            given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(called).bind(*node.args, **given)
    assert calls or not any(name == "mcm" for name in names), f"{block.place}: mcm is imported and not called"


def _resolved(func: ast.expr, names: dict[str, Any]) -> Callable[..., Any] | None:
    """What of ours a call names; None for other people's and for methods of what was made before."""
    if isinstance(func, ast.Attribute):
        base = names.get(func.value.id) if isinstance(func.value, ast.Name) else None
        if base is None or not getattr(base, "__name__", "").startswith("mcm"):
            return None
        called = getattr(base, func.attr)
        home = getattr(called, "__name__", "")
        return getattr(called, func.attr) if home.startswith("mcm.") and inspect.ismodule(called) else called
    called = names.get(func.id) if isinstance(func, ast.Name) else None
    return called if callable(called) and getattr(called, "__module__", "").startswith("mcm") else None


# That these tests can fail.


@pytest.mark.parametrize(
    "line",
    [
        "mcm distil x",
        "mcm distill pocket-animatedif",
        "mcm distill pocket-animatediff --optim.lrr 3",
        "mcm distill pocket-animatediff --optim.lr fast",
        "mcm generate x --promt a",
        "mcm generate x --prompt a --sampler dimd",
        "mcm export x --format onnx",
        "mcm evaluate x",
    ],
)
def test_a_wrong_line_is_found(line: str, stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(line.split()[1:], capsys) != ""


def test_overrides_on_the_pages_are_those_of_a_recipe() -> None:
    chosen = apply_overrides(load_recipe("pocket-animatediff"), {"training.updates": 1, "optim.lr": "1e-4"})
    assert (chosen.training.updates, chosen.optim.lr) == (1, 1e-4)


def test_pre_commit_runs_what_make_lint_runs() -> None:
    import yaml

    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "no network"
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"]]
    lint = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [entry for entry in entries if entry not in lint] == []
    for entry in entries:
        tool = Path(sys.executable).parent / Path(entry.split()[0]).name
        assert shutil.which(str(tool)), f"{tool} is not installed by make setup"


def test_issue_templates_are_forms() -> None:
    import yaml

    found = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {path.stem for path in found} == {"bug", "addition", "question", "config"}
    for path in found:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            continue
        assert {"name", "description", "body"} <= form.keys()
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)
        assert {part["type"] for part in form["body"]} <= {"textarea", "input", "dropdown", "checkboxes", "markdown"}
