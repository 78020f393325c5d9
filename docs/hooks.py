"""What the pages take from the code when they are built, so that it cannot drift and none of it is kept in git.

- `<!-- source: mcm.motion.Raw -->` alone on a line becomes that function or class, as it stands in src/.
- `<!-- file: docs/examples/samplers/ancestral.py -->` becomes that file.
- The pages of commands and recipes are written from the command line and the settings themselves.
- `../benchmarks/pocket/` in front of a picture becomes the place where the site keeps that picture.
- CONTRIBUTING.md, ARCHITECTURE.md and CHANGELOG.md become pages, their links turned to where the pages lie.

A name or a file that is gone ends the build.
"""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter

from mcm.card import StudentCard
from mcm.cli import VERBS, app
from mcm.methods import methods
from mcm.recipe import Recipe
from mcm.recipes import load_recipe, recipes
from mcm.settings import expected, settings

ROOT = Path(__file__).parent.parent
TEXTS = {name.lower(): name for name in ("CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")}
BENCH = ROOT / "benchmarks" / "pocket"
TAKEN = re.compile(r"^<!-- (source|file): (\S+) -->$", re.MULTILINE)
GROUPS = {"method": "The method", "data": "Data", "student": "The student", "optim": "Optimizers",
          "training": "Training", "discriminator": "The discriminator"}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {"reference/commands.md": commands(), "reference/recipes.md": recipe_page(), "css/code.css": code_style()}
    made |= {name: moved((ROOT / origin).read_text(encoding="utf-8")) for name, origin in TEXTS.items()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for picture in sorted(BENCH.glob("*.svg")) + sorted(BENCH.glob("*.gif")):
        files.append(File.generated(config, f"bench/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put code where a comment asks for it, and pictures of the bench where the site has them."""
    markdown = markdown.replace("](../benchmarks/pocket/", "](bench/")
    return TAKEN.sub(lambda found: fenced(source(found[2]) if found[1] == "source" else whole(found[2])), markdown)


def source(name: str) -> str:
    """The text of a function, method or class by its dotted name, in src/; no module is imported for it."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        base = ROOT.joinpath("src", *parts[:cut])
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            return _lines(text, _inside(ast.parse(text), parts[cut:], name))
    raise PluginError(f"a page asks for the source of {name}: no such module in src/")


def _inside(tree: ast.AST, parts: list[str], name: str) -> ast.FunctionDef | ast.ClassDef:
    for part in parts:
        found = [n for n in ast.iter_child_nodes(tree)
                 if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part]  # fmt: skip
        if not found:
            raise PluginError(f"a page asks for the source of {name}: there is no {part!r} any more")
        tree = found[0]
    assert isinstance(tree, ast.FunctionDef | ast.ClassDef)
    return tree


def _lines(text: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[start - 1 : node.end_lineno]))


def whole(name: str) -> str:
    """The text of a file of the repository."""
    path = ROOT / name
    if not path.is_file():
        raise PluginError(f"a page asks for the file {name}, which is not there")
    return path.read_text(encoding="utf-8").rstrip()


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def moved(text: str) -> str:
    """A text of the repository's root as a page of the site: its links point to where the other pages lie."""

    def link(found: re.Match[str]) -> str:
        place = found[1].removeprefix("docs/")
        return f"]({place.lower() if place.lower() in TEXTS else place})"

    return re.sub(r"\]\(([^)#:]+\.md)\)", link, text)


def commands() -> str:
    """Every verb with its options, as the command line itself knows them."""
    text = app.generate_docs(output_format="markdown", heading_level=1)
    text = text.replace("# mcm\n", "# Commands\n", 1).replace("```console", "```text").replace("\n**Commands**:\n", "")
    text = re.sub(r"## Table of Contents\n.*?(?=\n## )", "", text, flags=re.DOTALL)
    text = re.sub(r"^\* \[`\w+`\]\(#mcm-\w+\): .*\n", "", text, flags=re.MULTILINE)
    parts = re.split(r"(?m)^(?=## mcm (\w+)$)", text)
    out = [parts[0].rstrip(), COMMAND_NOTES]
    for verb, part in zip(parts[1::2], parts[2::2], strict=True):
        epilogue = app[verb].help_epilogue
        example = re.search(r"Example: (mcm .*)", epilogue if isinstance(epilogue, str) else "")
        if verb not in VERBS or example is None:
            raise PluginError(f"the verb {verb} has no example in its help")
        more = "Every [setting of a recipe](recipes.md) is an option, too.\n\n" if verb == "distill" else ""
        out.append(f"{part.strip()}\n\n{more}Example:\n\n```text\n{example[1]}\n```")
    return "\n\n".join(out) + "\n"


COMMAND_NOTES = """Every verb has `--help`. What a verb prints is for people; `--json` prints it for programs.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the work failed: one line on stderr says why and what to do |
| 2 | wrong usage: one line names the option and the nearest right one |
| 130 | stopped by Ctrl-C; the same command again goes on |

`MCM_DEBUG=1` in the environment shows where an error was raised."""


def recipe_page() -> str:
    """Every setting, every method's own defaults, every published run resolved, and the card."""
    rows: dict[str, list[str]] = {group: [] for group in GROUPS}
    top = []
    for name, field in settings(Recipe):
        default = field.get_default(call_default_factory=True)
        said = "*required*" if field.is_required() else f"`{_value(default)}`"
        row = f"| `{name}` | {expected(field)} | {said} | {_cell(field.description or '')} |"
        rows.get(name.partition(".")[0], top).append(row)
    head = "| setting | may be | default | what it is |\n|---|---|---|---|"
    text = [RECIPE_HEAD, "## Settings", f"{head}\n" + "\n".join(top)]
    for group, title in GROUPS.items():
        about = (Recipe.model_fields[group].annotation.__doc__ or "").strip().partition("\n\n")[0]
        text.append(f"### {title}\n\n{about}\n\n{head}\n" + "\n".join(rows[group]))
    text.append("## What methods set otherwise\n\n" + "\n".join(_own(methods())))
    text.append("## Published runs")
    for name in recipes():
        about = _about(name)
        yaml = textwrap.indent(f"```yaml\n{load_recipe(name).to_yaml().strip()}\n```", "    ")
        text.append(f'### {name}\n\n{about}\n\n??? note "All settings, resolved"\n\n{yaml}')
    rest = [f"| `{name}` | {_cell(field.description or '')} |" for name, field in StudentCard.model_fields.items()]
    text.append(CARD_HEAD + "\n".join(rest))
    return "\n\n".join(text) + "\n"


def _about(name: str) -> str:
    module = importlib.import_module(f"mcm.recipes.{name.replace('-', '_').replace('.', '_')}")
    lines = (module.__doc__ or "").strip().splitlines()
    # A line that begins with a word and a colon is a fact of its own.
    return "\n".join(f"\n{line}" if re.match(r"[A-Z][\w ]*: |- ", line) and k else line for k, line in enumerate(lines))


def _own(known: dict) -> list[str]:
    lines = []
    for name, kind in sorted(known.items()):
        changed = ", ".join(f"`method.{key}` `{_value(value)}`" for key, value in kind.own_defaults.items())
        lines.append(f"- `{name}`: {changed or 'the defaults above'}")
    return lines


def _value(value: object) -> str:
    """As it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def code_style() -> str:
    """Colours of code, light and dark."""
    light = HtmlFormatter(style="friendly").get_style_defs("[data-bs-theme=light] .highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs("[data-bs-theme=dark] .highlight")
    return f"{light}\n{dark}\n"


RECIPE_HEAD = """# Recipes

A recipe describes a run whole. It is one of the published runs below (`mcm list` names them), a `.yaml` or `.json`
file, or the folder of an earlier run. Every setting is also an option of `mcm distill`: `--optim.lr 1e-4`. An unknown
setting is an error, never dropped. The resolved recipe is saved beside what it made, as `recipe.yaml`, and that file is
a recipe again."""


CARD_HEAD = """## The card

Training writes `student/card.json` once; generation, evaluation and export read it. It is the only home of these
facts, so a student cannot be sampled with another schedule than it was trained with.

| field | what it is |
|---|---|
"""
