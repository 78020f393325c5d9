"""`mcm prepare`: a source into a folder that training reads, and a report of what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from mcm.cli.terminal import progress, say, show, tell
from mcm.cli.usage import UsageError
from mcm.settings import height_width

_DROPPED = 10  # items left out that are named on the terminal; report.json has them all

app = App(
    name="prepare",
    help_epilogue="""The folder: report.json and samples.png (what was found, and what was left out and why), and the
latents, text embeddings and real frames in shards. `mcm distill RECIPE --videos DIR` (or --images DIR) trains from it.
The same command again goes on where it was stopped. Under torchrun each rank makes its share of the shards.

Example: mcm prepare 'webvid-{0000..0009}.tar' --teacher pocket-modelscope --stride 8 --out prepared/webvid""",
    help_format="plaintext",
)


@app.default
def prepare(
    source: Annotated[
        str,
        Parameter(
            help="folder, .csv / .jsonl / .parquet table, or WebDataset tars ('shards-{0000..0009}.tar'); or one of "
            "these as s3://, hf:// or another fsspec URL"
        ),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="folder to make, or to go on with")],
    teacher: Annotated[str, Parameter(help="zoo name, diffusers folder or hub id")],
    images: Annotated[bool, Parameter(negative="", show_default=False, help="SOURCE is pictures, not videos")] = False,
    frames: Annotated[int | None, Parameter(help="frames of a clip [default: as the teacher]")] = None,
    size: Annotated[str | None, Parameter(help="HEIGHTxWIDTH in pixels [default: as the teacher]")] = None,
    stride: Annotated[int | None, Parameter(help="take every so manieth frame [default: 1]; not with --fps")] = None,
    fps: Annotated[float | None, Parameter(help="frames a second that clips are read at")] = None,
    shard_size: Annotated[int, Parameter(help="items of the source in one shard, redone where it is stopped")] = 64,
    keep_frames: Annotated[int, Parameter(help="real frames kept of each clip for the discriminator")] = 4,
    jpeg_quality: Annotated[int, Parameter(help="of these frames")] = 95,
    text_dtype: Annotated[
        Literal["float32", "float16"], Parameter(help="of the text embeddings; float16 takes half the room")
    ] = "float32",
    workers: Annotated[int | None, Parameter(help="processes that decode [default: the cores, at most 8]")] = None,
    timeout: Annotated[float, Parameter(help="seconds after which a film is given up and left out")] = 120.0,
    rank: Annotated[int | None, Parameter(help="which share of the shards [default: RANK, as by torchrun]")] = None,
    world_size: Annotated[int | None, Parameter(help="of how many [default: WORLD_SIZE]")] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="print the report as JSON")] = False,
) -> None:
    """Look at a source of videos or pictures, say what is in it, and encode it for many runs."""
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    if workers < 0 or timeout <= 0:
        raise UsageError(f"--workers {workers} --timeout {timeout:g}: expected at least 0, and more than 0 s")
    from mcm.prepare import prepare as run

    with progress() as told:
        report = run(
            source, out, teacher, images=images, frames=frames, size=height_width(size), stride=stride, fps=fps,
            shard_size=shard_size, keep_frames=keep_frames, jpeg_quality=jpeg_quality, text_dtype=text_dtype,
            workers=workers, limit=timeout, rank=rank, world=world_size, progress=told,
        )  # fmt: skip
    if json:
        tell(report)
    elif not report["finished"]:
        say(f"rank {report['rank']} of {report['world']} is done: {report['made']} of {report['shards']} shards stand")
    else:
        _say(report, out, images)


def _say(report: dict[str, Any], out: Path, images: bool) -> None:
    rows = [["found", str(report["found"])], ["usable", str(report["used"])]]
    rows += [[f"left out: {kind}", str(count)] for kind, count in report["left out"].items()]
    rows += [[f"size {size}", str(count)] for size, count in list(report["sizes (H x W)"].items())[:3]]
    for name in ("seconds", "frames per second", "words of a caption"):
        if name in report:
            spread = report[name]
            rows.append([name, f"{spread['least']:g} to {spread['most']:g}, median {spread['median']:g}"])
    if report["without a caption"]:
        rows.append(["without a caption", str(report["without a caption"])])
    show(report["source"], ["", report["what"]], rows)
    for item in report["dropped"][:_DROPPED]:
        say(f"left out {item['name']}: {item['reason']}")
    if len(report["dropped"]) > _DROPPED:
        say(f"and {len(report['dropped']) - _DROPPED} more, see {out / 'report.json'}")
    option = "--images" if images else "--videos"
    say(f"{out}: report.json, samples.png, {report['shards']} shards; mcm distill RECIPE {option} {out} trains from it")
