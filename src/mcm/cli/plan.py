"""`mcm plan`: what a run costs, before it is begun."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from mcm.cli.terminal import say, show, tell
from mcm.cli.usage import usage

app = App(
    name="plan",
    help_epilogue="Example: mcm plan pocket-modelscope --memory 24GB --card 4090",
    help_format="plaintext",
)
_SHOWN = 8  # settings that fit, in the table; --json has all


@app.default
def plan(
    what: Annotated[str, Parameter(help="a recipe's name or file, a run's folder, or a teacher's name or folder")],
    /,
    *,
    memory: Annotated[str | None, Parameter(help="what is there, as 24GB or 40GiB [default: the card's]")] = None,
    card: Annotated[str | None, Parameter(help="a card's name, as h100, a100 or 4090, for time and memory")] = None,
    frames: Annotated[int | None, Parameter(help="frames of a clip [default: the recipe's]")] = None,
    size: Annotated[str | None, Parameter(help="HEIGHTxWIDTH in pixels [default: the recipe's]")] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="print the plan as JSON")] = False,
) -> None:
    """Tell what a run costs in memory and time, and which settings fit; reads configurations, no weights."""
    from mcm.planning import plan as run

    with usage():
        found = run(what, memory, card, frames, size)
    if json:
        tell(found.to_dict())
        return
    say(
        f"{found.recipe}: {found.method} on {found.teacher} ({found.family}), {found.frames} frames of "
        f"{found.size[0]}x{found.size[1]}, {found.precision}, batch {found.batch} x {found.accumulation}\n"
    )
    show("parameters", (), [(name, f"{n:,}") for name, n in found.networks.items()])
    show("trained", (), [(name, f"{n:,}") for name, n in found.trained.items()])
    show("memory of the run", (), [(name, _size(n)) for name, n in found.memory.items()])
    step = found.step
    rows = [
        ("saved by the student's forward pass", _size(step.saved)),
        ("saved by decoding the picked frames", _size(step.decoder)),
        ("peak of the step", _size(step.peak)),
        ("TFLOP of one pass of the student", f"{step.forward / 1e12:.4g}"),
        *((f"TFLOP of: {name}", f"{work.flops / 1e12:.4g}") for name, work in step.parts.items()),
        ("TFLOP of the step", f"{step.work.flops / 1e12:.4g}"),
    ]
    show(f"one step of {found.batch} clip(s)", (), rows)
    if found.seconds_update is not None:
        say(f"on one {found.card}: about {found.seconds_update:.3g} s an update\n")
    if found.fits:
        fits = [
            (_size(fit.peak), "-" if fit.seconds is None else f"{fit.seconds:.3g}", str(fit.cards),
             fit.overrides or "(as it is)", fit.why)
            for fit in found.fits[:_SHOWN]
        ]  # fmt: skip
        columns = ("peak", "s an update", "cards", "settings", "why")
        show(f"fit into {_size(found.available or 0)}, fastest first", columns, fits)
    for note in found.notes:
        say(f"note: {note}")


def _size(count: int) -> str:
    """Bytes in GB (10^9) or MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
