"""`mcm generate`: prompts into video files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from mcm.cli.terminal import progress, say, tell
from mcm.cli.usage import UsageError, usage
from mcm.output import claim, holds
from mcm.settings import height_width

FILE = "generate.json"
_SHEET_ROWS = 64

app = App(
    name="generate",
    help_epilogue='Example: mcm generate runs/pocket-animatediff --prompt "a woman in red waves" --sheet',
    help_format="plaintext",
)


@app.default
def generate(
    model: Annotated[
        str, Parameter(help="a student's or a run's folder, a teacher's name, folder or hub id")
    ],
    /,
    *,
    prompt: Annotated[
        tuple[str, ...], Parameter(negative="", show_default=False, help="what to show; may be repeated")
    ] = (),
    prompts: Annotated[Path | None, Parameter(help="file: one prompt a line, or a .csv or .jsonl")] = None,
    steps: Annotated[
        int | None,
        Parameter(
            help="of the sampler [default: 4 for a student, 25 for a teacher]",
            validator=validators.Number(gte=1),
        ),
    ] = None,
    seed: Annotated[
        int, Parameter(help="of the first video; the next ones count up", validator=validators.Number(gte=0))
    ] = 0,
    count: Annotated[int, Parameter(help="videos of each prompt", validator=validators.Number(gte=1))] = 1,
    sampler: Annotated[
        str | None, Parameter(help="for teachers (mcm list); students know their own, and tcd in its place")
    ] = None,
    guidance_scale: Annotated[
        float | None, Parameter(help="for teachers; 1 is none", validator=validators.Number(gte=0))
    ] = None,
    frames: Annotated[
        int | None, Parameter(help="of a video [default: the model's own]", validator=validators.Number(gte=1))
    ] = None,
    size: Annotated[
        str | None, Parameter(help="HEIGHTxWIDTH in pixels, or one number [default: the model's own]")
    ] = None,
    pose: Annotated[
        str | None,
        Parameter(
            help="what the person does: OpenPose .json, a folder of those or of skeleton pictures, a film, or walk, ..."
        ),
    ] = None,
    controlnet: Annotated[
        str | None, Parameter(help="folder or hub id of what follows the pose [default: the pocket teacher's own]")
    ] = None,
    pose_scale: Annotated[
        float | None, Parameter(help="how much the pose counts [default: 1]", validator=validators.Number(gte=0))
    ] = None,
    pose_network: Annotated[
        str | None,
        Parameter(help="ViTPose that reads the pose from a film: folder or hub id [default: a published one]"),
    ] = None,
    pose_detector: Annotated[
        str | None,
        Parameter(help="RT-DETR or D-FINE that finds the person in it; none: fills the frame [default: as above]"),
    ] = None,
    format: Annotated[Literal["mp4", "gif", "webp"], Parameter(help="kind of file")] = "mp4",  # noqa: A002
    sheet: Annotated[
        bool, Parameter(negative="", show_default=False, help="also a contact sheet, sheet.png")
    ] = False,
    out: Annotated[Path | None, Parameter(help="folder of the videos [default: under runs/videos/]")] = None,
    json: Annotated[
        bool, Parameter(negative="", show_default=False, help="print what was made as JSON")
    ] = False,
) -> None:
    """Make videos from prompts, each with its settings in a .json beside it."""
    if not prompt and prompts is None:
        raise UsageError('nothing to show: give --prompt "a text" or --prompts FILE')
    words = [text for text in prompt if text.strip()]
    if len(words) < len(prompt):
        raise UsageError("--prompt is empty: expected what the video shall show")
    shape = _pixels(size)
    if pose is None and (controlnet, pose_scale) != (None, None):
        raise UsageError("--controlnet and --pose-scale say how to follow a pose: give --pose, too")
    reading = {"pose_network": pose_network, "pose_detector": pose_detector}
    stated = {name: value for name, value in reading.items() if value is not None}
    if stated and (pose is None or Path(pose).suffix.lower() in ("", ".json")):
        raise UsageError("--pose-network and --pose-detector read poses from a film: give a film as --pose, too")
    scale = 1.0 if pose_scale is None else pose_scale
    # Only what would make files of the same name differ; prompts and seeds may come in any number of calls.
    shared = {
        "model": model, "steps": steps, "sampler": sampler, "guidance_scale": guidance_scale, "frames": frames,
        "size": shape and list(shape),
    }  # fmt: skip
    name = _label(model, steps, sampler, guidance_scale, frames, shape)
    if pose is not None:
        shared |= {"pose": pose, "controlnet": controlnet, "pose_scale": scale, **stated}
        name += f"-pose-{Path(pose).stem}"
        name += "" if controlnet is None else f"-{Path(controlnet).name}"
        name += "" if pose_scale is None else f"-{pose_scale:g}"
    folder = out or Path("runs/videos") / name
    holds(folder, shared, FILE)
    if prompts is not None:
        from mcm.data.sources import Prompts

        words += Prompts(prompts)
    if sampler is not None:
        with usage():
            from mcm.samplers import sampler as known

            known(sampler)
    from mcm.generate import generate as run
    from mcm.generate import save_video

    wanted = [text for text in words for _ in range(count)]
    videos = run(
        model,
        wanted,
        seeds=range(seed, seed + len(wanted)),
        steps=steps,
        sampler=sampler,
        guidance_scale=guidance_scale,
        frames=frames,
        size=shape,
        pose=pose,
        controlnet=controlnet,
        pose_scale=scale,
        pose_network=pose_network,
        pose_detector=pose_detector,
    )
    made = []
    shown = []
    with progress() as told:
        told("generating", 0, len(wanted))
        for video in videos:
            if not made:  # not before a video is there: a wrong name must not occupy a folder
                claim(folder, shared, FILE)
            path = save_video(video, folder, format)
            made.append({"file": str(path), "prompt": video.prompt, "seed": video.seed, **video.settings})
            if sheet and len(shown) < _SHEET_ROWS:
                shown.append((video.frames, f"{video.prompt} (seed {video.seed})"))
            told("generating", len(made), len(wanted))
    if sheet:
        from mcm.data.sheets import contact_sheet

        contact_sheet(folder / "sheet.png", [[frames] for frames, _ in shown], [label for _, label in shown])
    if json:
        tell({"out": str(folder), "videos": made})
    else:
        for video in made:
            say(f"{video['file']}: {video['prompt']} (seed {video['seed']})")


def _pixels(size: str | None) -> tuple[int, int] | None:
    """Height and width as numbers; a UsageError for anything else."""
    if size is None:
        return None
    try:
        height, width = (int(side) for side in height_width(size))
    except ValueError:
        raise UsageError(f'--size: expected HEIGHTxWIDTH, such as 64x96, or one number, got "{size}"') from None
    return height, width


def _label(
    model: str, steps: int | None, sampler: str | None, guidance_scale: float | None, frames: int | None,
    size: tuple[int, int] | None,
) -> str:  # fmt: skip
    """A folder's name that tells runs apart for which files of one name would differ."""
    place = Path(model)
    name = place.parent.name if place.name == "student" and place.parent.name else place.name
    parts = [name or "model", sampler]
    if steps is not None:
        parts.append(f"{steps}-steps")
    if guidance_scale is not None:
        parts.append(f"guidance-{guidance_scale:g}")
    if frames is not None:
        parts.append(f"{frames}-frames")
    if size is not None:
        parts.append(f"{size[0]}x{size[1]}")
    return "-".join(part for part in parts if part)
