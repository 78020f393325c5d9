"""What `mcm prepare` takes in memory, what a restart costs, and what becomes of damaged films and of kills.

`make preparation` runs everything, into benchmarks/prepare.json (about a quarter of an hour). PREPARATION_ARGS may be
    --films DIR        real films in DIR besides those of the packages for development
    --parts restart    these parts alone, the others stay as they are in the file
    --clips 50 100 --copies 20 --kills 2 --out trial.json

memory: peak resident bytes of the process and of its workers, for sources of several lengths. restart: seconds from
the call to the first clip made, less those that loading the teacher takes, in a folder that lacks its last shard; and
of a call where nothing is left to do. damaged: real films and copies of them, cut off or with bytes changed; each must
come out as a clip or be named with a reason. kills: SIGKILL at random moments, then on; the end must be the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from footage import films

from mcm.data.readers import VIDEO_SUFFIXES
from mcm.data.video import as_pixels, write_video
from mcm.evaluation.report import provenance
from mcm.output import write_json
from mcm.pocket.sources import PocketClips

HERE = Path(__file__).parent
TEACHER = "pocket-modelscope"
WORKERS = 2
SHARD = 64
PARTS = ("memory", "restart", "damaged", "kills")
# Tells when each phase began, in seconds since the call, and how long loading the teacher took of them.
TIMED = """
import json, sys, time
import mcm.prepare
told, module = {}, sys.modules["mcm.prepare"]
load = module.load_video_model

def loaded(*given):
    begun = time.monotonic()
    model = load(*given)
    told["loaded in"] = time.monotonic() - begun
    return model

module.load_video_model = loaded
begun = time.monotonic()
module.prepare(sys.argv[1], sys.argv[2], sys.argv[3], shard_size=int(sys.argv[4]),
    progress=lambda what, *_: told.setdefault(what, time.monotonic() - begun))
told["end"] = time.monotonic() - begun
print(json.dumps(told))
"""


def command(source: Path, out: Path, *more: str) -> list[str]:
    words = [str(source), "--teacher", TEACHER, "--out", str(out), "--shard-size", str(SHARD)]
    return [sys.executable, "-m", "mcm", "prepare", *words, *more]


def rendered(folder: Path, count: int) -> None:
    """`count` films of the pocket world with their captions."""
    folder.mkdir(parents=True)
    for k, clip in enumerate(PocketClips("broadcast", 10, (64, 64), count)):
        write_video(folder / f"{k:05d}.mp4", as_pixels(clip.video), 8)
        (folder / f"{k:05d}.txt").write_text(clip.caption)


def memory(source: Path, out: Path) -> dict[str, Any]:
    """Prepares and watches."""
    begun = time.monotonic()
    run = psutil.Popen(command(source, out, "--workers", str(WORKERS)), stdout=subprocess.DEVNULL)
    peaks = {"process": 0, "workers": 0}

    def watch() -> None:
        while run.is_running() and run.status() != psutil.STATUS_ZOMBIE:
            try:
                sizes = [child.memory_info().rss for child in run.children(recursive=True)]
                peaks["process"] = max(peaks["process"], run.memory_info().rss)
                peaks["workers"] = max(peaks["workers"], sum(sizes))
            except psutil.NoSuchProcess:
                pass  # one that has just ended
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = run.wait()
    watcher.join()
    if code:
        raise SystemExit(f"mcm prepare failed with exit code {code}")
    report = json.loads((out / "report.json").read_text())
    return {
        "clips": report["used"], "peak_bytes_process": peaks["process"], "peak_bytes_workers": peaks["workers"],
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def restarts(source: Path, out: Path) -> dict[str, Any]:
    """out: a finished folder; its last shard is made anew."""

    def timed() -> dict[str, float]:
        words = [sys.executable, "-c", TIMED, str(source), str(out), TEACHER, str(SHARD)]
        return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    nothing_left = timed()["end"]
    last = sorted(out.glob("shard-*"))[-1]
    before = last.read_bytes()
    last.unlink()
    told = timed()
    return {
        "shards": len(list(out.glob("shard-*"))), "seconds_nothing_left": round(nothing_left, 2),
        "seconds_to_first_clip": round(told["preparing"], 2),
        "seconds_loading_the_teacher": round(told["loaded in"], 2),
        "seconds_of_the_restart": round(told["preparing"] - told["loaded in"], 2),
        "the_shard_is_the_same": last.read_bytes() == before,
    }  # fmt: skip


def real_films(more: Path | None) -> list[Path]:
    """Films in the packages for development, and in `more`."""
    found = {path.resolve() for path in more.rglob("*")} if more else set()
    return sorted({path for path in found if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()} | {*films()})


def damaged(place: Path, films: list[Path], copies: int, rng: random.Random) -> dict[str, Any]:
    """The films themselves, then copies: cut off, or with bytes changed, in their headers or anywhere."""
    source = place / "damaged"
    source.mkdir()
    for k in range(len(films) + copies):
        film = films[k % len(films)]
        data = bytearray(film.read_bytes())
        if k >= len(films) and rng.random() < 0.4:
            del data[rng.randrange(len(data)) :]
        elif k >= len(films):
            end = len(data) if rng.random() < 0.5 else min(len(data), 4096)
            for _ in range(rng.choice((1, 20, 500))):
                data[rng.randrange(end)] = rng.randrange(256)
        (source / f"{k:03d}{film.suffix}").write_bytes(data)
        (source / f"{k:03d}.txt").write_text(f"film {film.stem}")
    begun = time.monotonic()
    code = subprocess.run(command(source, place / "damaged-out", "--workers", str(WORKERS)), check=False).returncode
    report = json.loads((place / "damaged-out" / "report.json").read_text())
    named = {item["name"] for item in report["dropped"]}
    whole = {f"{k:03d}{film.suffix}" for k, film in enumerate(films)}
    return {
        "exit_code": code, "films": len(films), "damaged_copies": copies, "found": report["found"],
        "decoded": report["used"], "named_with_a_reason": len(named), "films_left_out": sorted(
            f"{item['name']}: {item['reason']}" for item in report["dropped"] if item["name"] in whole
        ),
        "reasons": report["left out"], "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def killed(source: Path, place: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Kills until `count` are done; whenever a folder is finished, it is compared and the next is begun."""
    begun = time.monotonic()
    subprocess.run(command(source, place / "whole", "--workers", str(WORKERS)), check=True)
    seconds, wanted = time.monotonic() - begun, contents(place / "whole")
    runs, moments, same = 1, [], True
    while True:
        out = place / f"killed-{runs}"
        run = subprocess.Popen(
            command(source, out, "--workers", str(WORKERS)), start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            run.wait(rng.uniform(0.0, 0.9) * seconds if len(moments) < count else None)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)  # the process alone: its workers must notice by themselves
            moments.append(len(list(out.glob("shard-*"))))
        if run.wait() == 0:
            same = same and contents(out) == wanted
            if len(moments) == count:
                break
            runs += 1
        elif run.returncode != -signal.SIGKILL:
            raise SystemExit(f"mcm prepare failed by itself, with exit code {run.returncode}")
    return {"kills": count, "runs": runs, "shards_when_killed": moments, "the_same_files": same}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=HERE / "prepare.json")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    report: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="mcm-prepare-") as folder:
        place = Path(folder)
        counts = sorted(given.clips if "memory" in given.parts else [min(given.clips), max(given.clips)])
        rendered(place / "all", counts[-1])
        sources = [place / f"clips-{count}" for count in counts]
        for count, source in zip(counts, sources, strict=True):
            source.mkdir(exist_ok=True)
            for path in sorted((place / "all").iterdir())[: 2 * count]:
                (source / path.name).symlink_to(path)
        if "memory" in given.parts:
            report["memory"] = [memory(source, place / f"out-{source.name}") for source in sources]
        if "restart" in given.parts:
            out = place / f"out-{sources[-1].name}"
            subprocess.run(command(sources[-1], out), check=True)  # nothing where it is done
            report["restart"] = restarts(sources[-1], out)
        if "damaged" in given.parts:
            report["damaged"] = damaged(place, real_films(given.films), given.copies, rng)
        if "kills" in given.parts:
            report["kills"] = killed(sources[0], place, given.kills, rng)
    write_json(given.out, {**report, "provenance": provenance()})
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
