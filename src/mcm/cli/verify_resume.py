"""`mcm verify-resume`: does a run that was killed end as one that was not?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from mcm.cli.terminal import progress, say, tell
from mcm.cli.usage import UsageError, usage
from mcm.recipes import load_recipe

app = App(
    name="verify-resume",
    help_epilogue="Example: mcm verify-resume pocket-animatediff --updates 6\n"
    "Exit code 0: every bit is the same; 1: something differs, which is named.",
    help_format="plaintext",
)


@app.default
def verify_resume(
    recipe: Annotated[
        str, Parameter(help="a name (mcm list), a .yaml or .json file, or the folder of an earlier run")
    ],
    /,
    *,
    updates: Annotated[int, Parameter(help="of each of the two runs, at least 3")] = 6,
    out: Annotated[
        Path | None, Parameter(help="a new folder to keep both runs in [default: they are thrown away]")
    ] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="print the verdict as JSON")] = False,
) -> None:
    """Distil twice, once with a SIGKILL in between, and compare the checkpoints bit for bit."""
    with usage():
        chosen = load_recipe(recipe)
    if updates < 3:
        raise UsageError(f"--updates {updates}: expected at least 3")
    from mcm.errors import UserError
    from mcm.verify import verify_resume as run

    with progress() as told:
        verdict = run(chosen, updates, out, told)
    if json:
        tell({"exact": verdict.exact, **vars(verdict)})
    elif verdict.exact:
        say(str(verdict))
    if not verdict.exact:
        raise UserError(str(verdict))
