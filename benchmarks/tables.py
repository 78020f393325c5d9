"""Writes the figures of README.md and the pages in docs from the JSON files in this folder.

python benchmarks/tables.py            write them
python benchmarks/tables.py --check    exit 1 where a page says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import results

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
AIM = 0.6
COLUMNS = {
    "method": "method", "sampler": "sampler", "steps": "steps", "guidance": "guidance", "n": "clips",
    "fvd": "FVD (95 %)", "clipsim": "CLIPSIM", "motion_ratio": "motion ratio", "fid": "FID to studio",
    "action_accuracy": "action", "scene_accuracy": "scene", "colour_accuracy": "colours",
}  # fmt: skip
SHARES = ("action_accuracy", "scene_accuracy", "colour_accuracy")


def cell(row: dict, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    if name in SHARES:
        return f"{100 * value:.1f} %"
    if name not in ("fvd", "clipsim", "motion_ratio", "fid"):
        return f"{value:g}" if isinstance(value, float) else str(value)
    shown = f"{value:.2f}"
    interval = row.get("intervals", {}).get(name)
    return f"{shown} ({interval[0]:.2f}-{interval[1]:.2f})" if name == "fvd" and interval else shown


def table(report: dict) -> str:
    """A report's rows as Markdown; columns that no row has are left out."""
    names = [n for n in COLUMNS if any(row.get(n) is not None for row in report["rows"])]
    lines = [results.table_head(*(COLUMNS[n] for n in names))]
    lines += [results.table_line(*(cell(row, n) for n in names)) for row in report["rows"]]
    return "\n".join(lines)


def quickstart() -> str:
    """What `make quickstart` made and measured."""
    report = json.loads((HERE / "quickstart.json").read_text())
    ddim, student = (next(r for r in report["rows"] if r["method"] == m and r["steps"] == 4) for m in ("ddim", "mcm"))
    ratio = student["fvd"] / ddim["fvd"]
    return "\n".join(
        [
            "![rows: prompts; columns: teacher in 25 steps, teacher in 4, student in 4](docs/images/compare.gif)",
            "",
            f"Measured (`benchmarks/quickstart.json`): the student's FVD in 4 steps is {ratio:.2f} times that of its "
            f"teacher in 4 DDIM steps (the aim is {AIM} at most: {'met' if ratio <= AIM else 'missed'}).",
            "",
            table(report),
        ]
    )


def zoo() -> str:
    """The shipped teachers and students on held-out prompts (`benchmarks/zoo.py`)."""
    report = json.loads((HERE / "zoo.json").read_text())
    parts = []
    for teacher in dict.fromkeys(row["teacher"] for row in report["rows"]):
        rows = [{**row, "n": None, "guidance": None} for row in report["rows"] if row["teacher"] == teacher]
        counts = sorted({row["n"] for row in report["rows"] if row["teacher"] == teacher})
        said = " and ".join(map(str, counts))
        parts.append(f"{teacher}, {said} held-out prompts a row (`benchmarks/zoo.json`):\n\n{table({'rows': rows})}")
    return "\n\n".join(parts)


def demo() -> str:
    """The page's start, and what many clients at once got (`benchmarks/demo.py`)."""
    report = json.loads((HERE / "demo.json").read_text())
    crowd, memory = report["crowd"], report["crowd"]["memory in MB"]
    wrong = sum(crowd["wrong answers"].values())
    words = (
        f"Measured on {report['provenance']['cpus']} cores (`benchmarks/demo.json`, {', '.join(report['models'])}): "
        f"the first video {report['seconds to the first video']:.0f} s after the command. {crowd['clients']} clients "
        f"at once for {crowd['seconds'] / 60:g} minutes got {crowd['videos']} videos, {crowd['refusals']} times the "
        f"word that the page is busy, and {wrong} times anything else; the queue held {crowd['longest queue']} "
        f"requests at most, the memory {memory['half']} MB half-way and {memory['end']} MB at the end."
    )
    return words.replace("for 0.5 minutes", "for half a minute")


def prepare() -> str:
    """Memory, restarts, damage and kills of `mcm prepare` (`benchmarks/prepare.py`)."""
    report = json.loads((HERE / "prepare.json").read_text())
    peaks = " / ".join(f"{row['peak_bytes_process'] / 1e6:.0f}" for row in report["memory"])
    clips = " / ".join(f"{row['clips']:,}" for row in report["memory"])
    restart, damaged, kills = report["restart"], report["damaged"], report["kills"]
    same = "the same files" if kills["the_same_files"] else "**other files**"
    return (
        f"Measured (`benchmarks/prepare.json`): the process takes {peaks} MB at its peak for {clips} clips. A restart "
        f"costs {restart['seconds_of_the_restart']:.2f} s besides loading the teacher, with {restart['shards']} "
        f"shards; where nothing is left to do {restart['seconds_nothing_left']:.2f} s. Of {damaged['films']} films of "
        f"camera footage and {damaged['damaged_copies']} damaged copies {damaged['decoded']} were decoded and "
        f"{damaged['named_with_a_reason']} named with a reason. {kills['kills']} times killed at random moments, it "
        f"ended with {same} as undisturbed."
    )


def kills() -> str:
    """A run of training, killed again and again (`benchmarks/kills.py`)."""
    report = json.loads((HERE / "kills.json").read_text())
    ends = "as the uninterrupted run, bit for bit" if report["exact"] else "**differently**"
    runs, updates = len(report["runs"]), report["recipe"]["training"]["updates"]
    return (
        f"Measured (`benchmarks/kills.json`): {report['kills']} times killed at random moments, in {runs} runs of "
        f"{updates} updates, training ended {ends}."
    )


def fullsize() -> str:
    """Steps of full-size teachers beside their plans (`benchmarks/fullsize.py`)."""
    report = json.loads((HERE / "fullsize.json").read_text())
    lines = [
        "| teacher | size | frames | checkpointing | peak, GB | planned, GB | planned / peak | seconds |",
        "|" + "---|" * 8,
    ]
    for row in report["rows"]:
        real, planned = row["peak_bytes"], row["planned_peak_bytes"]
        assert row["weight_bytes"] == row["planned_weight_bytes"], "the weights of a plan are exact"
        lines.append(
            f"| {row['teacher']} | {row['size'][0]}x{row['size'][1]} | {row['frames']} "
            f"| {'yes' if row['checkpointing'] else 'no'} | {real / 1e9:.2f} | {planned / 1e9:.2f} "
            f"| {planned / real:.2f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def pose() -> str:
    """How far what was made is from the pose that was asked for (`benchmarks/pose.py`)."""
    report = json.loads((HERE / "pose.json").read_text())
    lines = [results.table_head("clips", "sampler", "steps", "pose given", "distance (95 %)")]
    for row in report["rows"]:
        low, high = row["interval"]
        lines.append(
            results.table_line(
                row["system"], row["sampler"] or "-", row["steps"] or "-", "yes" if row["pose"] else "no",
                f"{row['keypoint_error']:.2f} ({low:.2f}-{high:.2f})",
            )
        )  # fmt: skip
    return "\n".join(lines)


README_BLOCKS = {
    "quickstart": quickstart, "kills": kills, "prepare": prepare, "demo": demo, "zoo": zoo, "bench": results.short,
    "fullsize": fullsize,
}  # fmt: skip
DOCS = HERE.parent / "docs"
PAGES = {README: README_BLOCKS, DOCS / "results.md": results.BLOCKS, DOCS / "how-to" / "pose.md": {"pose": pose}}


def written(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """A page with every block between its marks made anew."""
    for name, make in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{make()}\n{end}{tail}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    differ = []
    for page, blocks in PAGES.items():
        old = page.read_text()
        new = written(old, blocks)
        if new != old:
            differ.append(page.name)
            if not check:
                page.write_text(new)
    if check and differ:
        print(f"{', '.join(differ)} and benchmarks/ differ: run python benchmarks/tables.py", file=sys.stderr)
    return int(check and bool(differ))


if __name__ == "__main__":
    raise SystemExit(main())
