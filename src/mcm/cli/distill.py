"""`mcm distill`: a recipe, changed by options, into a student."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from mcm.cli.terminal import progress, say, tell
from mcm.cli.usage import UsageError, usage
from mcm.recipe import Recipe, apply_overrides
from mcm.recipes import load_recipe
from mcm.settings import expected, settings


def _help() -> str:
    """All settings of a recipe, one a line."""
    lines = ["Settings of a recipe, with their defaults; a recipe may have its own. Each is also an option:"]
    for name, field in settings(Recipe):
        default = field.get_default(call_default_factory=True)
        if default is None or field.is_required():
            said = ""
        elif isinstance(default, tuple):
            said = f" [{','.join(map(str, default))}]"
        else:
            said = f" [{str(default).lower() if isinstance(default, bool) else default}]"
        if "." in name:
            lines.append(f"  --{name} ({expected(field)}){said}\n      {field.description}")
    lines += [
        "",
        "Example: mcm distill pocket-animatediff --videos clips/ --images pictures/ --optim.lr 1e-4",
        "The same command again goes on where it was stopped.",
    ]
    return "\n".join(lines)


app = App(name="distill", help_epilogue=_help(), help_format="plaintext")


@app.default
def distill(
    recipe: Annotated[
        str, Parameter(help="a name (mcm list), a .yaml or .json file, or the folder of an earlier run")
    ],
    /,
    *,
    teacher: Annotated[str | None, Parameter(help="zoo name, diffusers folder or hub id")] = None,
    videos: Annotated[
        str | None,
        Parameter(help="folder, table, tar or URL of videos with captions; laboratory pictures are then left out"),
    ] = None,
    images: Annotated[
        str | None, Parameter(help="folder, table, tar or URL of pictures whose look the frames shall have")
    ] = None,
    prompts: Annotated[
        str | None,
        Parameter(help="file of prompts; without --videos the teacher's own samples are the clips"),
    ] = None,
    out: Annotated[Path | None, Parameter(help="folder of the run [default: under runs/]")] = None,
    steps: Annotated[
        int | None, Parameter(name=["--steps", "--updates"], help="optimizer steps (training.updates)")
    ] = None,
    resume: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="fail unless --out holds this run already [default: go on if it does]",
        ),
    ] = False,
    changes: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            negative="",
            show_default=False,
            help="NAME=VALUE, any setting; also written --NAME VALUE",
        ),
    ] = (),
    json: Annotated[
        bool, Parameter(negative="", show_default=False, help="print the student's card as JSON")
    ] = False,
) -> None:
    """Distil a teacher into a student of few steps."""
    with usage():
        asked = load_recipe(recipe)
        overrides = _parsed(changes)
        common = {"teacher": teacher, "data.videos": videos, "data.images": images, "data.prompts": prompts}
        overrides.update({name: value for name, value in common.items() if value is not None})
        if steps is not None:
            overrides["training.updates"] = steps
        chosen = apply_overrides(asked, {**_consequences(asked, overrides), **overrides})
        folder = out or _folder(recipe, asked, chosen)
    if not chosen.may_use(folder) and resume:
        raise UsageError(f"{folder} holds no run to resume: leave --resume out to begin one")

    with usage():
        from mcm.motion import motion_representation

        motion_representation(chosen.method.motion, channels=1)
    from mcm.distill import distill as run
    from mcm.training.interrupt import ended_politely
    from mcm.training.ranks import announced

    rank, world = announced()
    if not json and rank == 0:
        processes = f"{world} processes" if world > 1 else "1 process"
        say(f"recipe {chosen.name}: {chosen.method.name} on {chosen.teacher}, {processes}, into {folder}")
    with progress() as told, ended_politely():
        card = run(chosen, folder, progress=told)
    if rank > 0:
        return
    if json:
        tell(card.model_dump(mode="json"))
    else:
        say(f'done: mcm generate {folder} --prompt "..." makes videos with it')


def _parsed(changes: tuple[str, ...]) -> dict[str, Any]:
    """{"optim.lr": "1e-4"} of "optim.lr=1e-4"; the last one counts."""
    overrides: dict[str, Any] = {}
    known = [name for name, _ in settings(Recipe)]
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals and name.replace("-", "_") in known:
            raise UsageError(f'the setting "{name}" needs a value: --{name} VALUE')
        overrides[name.replace("-", "_")] = value  # an unknown name is apply_overrides' to report
    return overrides


def _consequences(recipe: Recipe, overrides: dict[str, Any]) -> dict[str, Any]:
    """What else changes with the data that the user brings, unless the user says otherwise.

    Pictures are there to be learnt from; videos of one's own do not go with the laboratory's pictures;
    prompts without videos mean that the teacher makes the clips.
    """
    changed: dict[str, Any] = {}
    if overrides.get("data.images") is not None:
        changed["method.adversary"] = "pictures"
        if overrides.get("method.adversary", "pictures") != "pictures":
            raise UsageError(
                f"--images is given, but method.adversary is {overrides['method.adversary']!r}, so that "
                "nothing would look at the pictures: leave one of the two out"
            )
    elif (
        not str(overrides.get("data.videos", "pocket:")).startswith("pocket:")
        and recipe.method.adversary == "pictures"
        and (recipe.data.images or "").startswith("pocket:")
    ):
        changed = {"data.images": None, "method.adversary": "video"}
    if overrides.get("data.prompts") is not None and "data.videos" not in overrides:
        changed["data.videos"] = None
    return changed


def _folder(given: str, asked: Recipe, chosen: Recipe) -> Path:
    """Where a run without --out goes: the same command always finds the same folder, another one another."""
    place = Path(given).expanduser()
    if chosen == asked:
        return place if place.is_dir() else Path("runs") / place.stem
    digest = hashlib.sha256(chosen.to_yaml().encode()).hexdigest()[:6]
    return Path("runs") / f"{place.stem}-{digest}"
