"""Measures `mcm demo`: the time to the first video, and many clients at once on loopback.

    python benchmarks/demo.py                      50 clients, 5 minutes, into benchmarks/demo.json
    python benchmarks/demo.py --minutes 0.5 --models pocket-modelscope --out trial.json

The page runs in a process of its own. Every client asks for a video, waits for the answer, looks at the file (or, where
the page says that it is busy, waits some seconds) and asks again. What is neither a video nor a refusal in words is
counted as wrong, and named.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from mcm.evaluation.report import provenance
from mcm.output import write_json

HERE = Path(__file__).parent
PROMPT = "a person in a red shirt and blue trousers waving in a park"
_EVERY = 1.0  # seconds between looks at memory and queue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["pocket-modelscope"], help="what the page offers")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=1, help="of students and teachers")
    parser.add_argument("--out", type=Path, default=HERE / "demo.json")
    given = parser.parse_args()
    begin = time.monotonic()
    command = [sys.executable, "-m", "mcm", "demo", *given.models, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = address(process)
            answered = time.monotonic() - begin
            with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
                answer = ask(client, given.steps, seed=0)
            if answer != "video":
                raise SystemExit(f"the first answer is no video: {answer}")
            first = time.monotonic() - begin
            crowd = visited(url, process.pid, given.clients, 60 * given.minutes, given.steps)
            crowd["alive afterwards"] = process.poll() is None
        finally:
            process.terminate()
    found = {
        "models": given.models, "steps": given.steps, "seconds to the page": round(answered, 1),
        "seconds to the first video": round(first, 1), "crowd": crowd, "provenance": provenance(),
    }  # fmt: skip
    write_json(given.out, found)
    print(json.dumps(found, indent=2))


def address(process: subprocess.Popen[str]) -> str:
    """The page's address, which the command prints when it is ready."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("open http"):
            return line.split()[1].rstrip("/")
    raise SystemExit("the page did not start")


def ask(client: httpx.Client, steps: int, seed: int) -> str:
    """ "video", "refused", or what came instead."""
    data = [PROMPT, None, steps, steps, seed, None, None, None, None]
    start = client.post("/gradio_api/call/generate", json={"data": data})
    if start.status_code == 503:
        return "refused" if "busy" in start.text else start.text[:200]
    if start.status_code != 200:
        return f"{start.status_code}: {start.text[:200]}"
    said = client.get(f"/gradio_api/call/generate/{start.json()['event_id']}").text
    if "event: complete" not in said:
        return said[-200:]
    files: list[Any] = json.loads(said.rpartition("data: ")[2].strip())[0][0]
    film = client.get(files[0]["url"]).content
    return "video" if film[4:8] == b"ftyp" else f"a file that is no MP4: {film[:20]!r}"


def visited(url: str, pid: int, clients: int, seconds: float, steps: int) -> dict[str, Any]:
    """What `clients` threads got in so many seconds, and what it took."""
    answers: Counter[str] = Counter()
    waits: list[float] = []
    lock, end = threading.Lock(), time.monotonic() + seconds

    def visit(number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
            while time.monotonic() < end:
                begin = time.monotonic()
                try:
                    answer = ask(client, steps, rng.randrange(10**6))
                except httpx.HTTPError as error:
                    answer = f"{type(error).__name__}: {error}"
                with lock:
                    answers[answer] += 1
                    if answer == "video":
                        waits.append(time.monotonic() - begin)
                if answer == "refused":
                    time.sleep(rng.uniform(1, 3))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    memory, queue = watched(url, pid, end)
    for thread in threads:
        thread.join()
    waits.sort()
    half = len(memory) // 2
    return {
        "clients": clients,
        "seconds": seconds,
        "videos": answers.pop("video", 0),
        "refusals": answers.pop("refused", 0),
        "wrong answers": dict(answers),
        "seconds of waiting": {"median": round(waits[len(waits) // 2], 2), "longest": round(waits[-1], 2)},
        "memory in MB": {"begin": memory[0], "half": memory[half], "end": memory[-1], "most": max(memory)},
        "longest queue": max(queue),
    }


def watched(url: str, pid: int, end: float) -> tuple[list[int], list[int]]:
    """Resident memory in MB and the queue's length, every second until `end`."""
    process = psutil.Process(pid)
    memory, queue = [], []
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        while True:
            memory.append(round(process.memory_info().rss / 1e6))
            queue.append(int(client.get("/gradio_api/queue/status").json()["queue_size"]))
            if time.monotonic() > end:
                return memory, queue
            time.sleep(_EVERY)


if __name__ == "__main__":
    main()
