"""`mcm export`: a student for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from mcm.cli.terminal import progress, say, tell

app = App(
    name="export",
    help_epilogue="Example: mcm export runs/pocket-animatediff --format merged",
    help_format="plaintext",
)


@app.default
def export(
    student: Annotated[
        str, Parameter(help="a student's or a run's folder, a shipped student's name, or official weights")
    ],
    /,
    *,
    format: Annotated[  # noqa: A002 (the option's name)
        Literal["diffusers", "peft", "merged", "comfyui"],
        Parameter(
            help="diffusers: a LoRA for load_lora_weights; peft: a folder for PeftModel; merged: a whole pipeline; "
            "comfyui: LoRAs for ComfyUI with AnimateDiff-Evolved"
        ),
    ],
    out: Annotated[Path | None, Parameter(help="folder [default: under runs/exports/]")] = None,
    half: Annotated[bool, Parameter(negative="", show_default=False, help="weights in float16")] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="print what was written as JSON")] = False,
) -> None:
    """Write a student for diffusers, peft or ComfyUI, with a README.md that says how to load and sample it."""
    from mcm.export import export as run

    place = Path(student)
    name = place.parent.name if place.name == "student" and place.parent.name else place.name
    name = "-".join(name.replace(":", "-").split()) or "student"
    folder = out or Path("runs/exports") / f"{name}-{format}{'-half' if half else ''}"
    with progress() as told:
        run(student, format, folder, half, told)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if json:
        tell({"out": str(folder), "format": format, "files": files})
    else:
        say(f"{folder}: {', '.join(files)}")
