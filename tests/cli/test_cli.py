"""The real command: exit codes, one line for what is wrong, JSON for programs. No network is loaded here."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import mcm as package
from mcm.cli import VERBS, _dotted, main, terminal
from mcm.cli.distill import _consequences, _folder
from mcm.errors import UserError
from mcm.recipe import DataConfig, MethodConfig, Recipe, apply_overrides

Mcm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def mcm(tmp_path: Path) -> Mcm:
    """The command in an empty folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(Path(package.__file__).parents[1])}
        environment.pop("MCM_DEBUG", None)
        command = [sys.executable, "-m", "mcm", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


def test_help_names_the_verbs(mcm: Mcm) -> None:
    done = mcm("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", done.stdout)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(mcm: Mcm, verb: str) -> None:
    done = mcm(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Example: mcm {verb}" in done.stdout
    if verb == "distill":
        assert re.search(r"--optim\.warmup \(a whole number of at least 0\) \[500\]", done.stdout)
    if verb == "evaluate":
        assert "[default: 1 2 4 8]" in done.stdout


@pytest.mark.parametrize(
    "arguments", ["distil x", "distill pocket-animatediff --optim.lrr 3", "generate x --stepz 3"]
)
def test_wrong_usage_of_the_real_command(mcm: Mcm, tmp_path: Path, arguments: str) -> None:
    done = mcm(*arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"mcm: .*[Dd]id you mean .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_another_run_is_left_alone(mcm: Mcm, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "mine"
    Recipe(name="r", teacher="t", data=DataConfig(videos="v")).claim(out)
    (out / "log.jsonl").touch()
    before = (out / "recipe.yaml").read_text()
    done = mcm("distill", "pocket-animatediff", "--out", str(out))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f'{out} holds another run (name is "r" there' in done.stderr
    assert "choose another --out" in done.stderr
    assert (out / "recipe.yaml").read_text() == before


def test_list_for_programs_and_people(mcm: Mcm) -> None:
    done = mcm("list", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"lcm", "mcm"} <= found["methods"].keys()
    assert {"ddim", "dpm++", "consistency"} <= found["samplers"].keys()
    assert {"raw", "difference", "learnable"} <= found["motion representations"].keys()
    assert {"pocket-animatediff", "pocket-modelscope"} <= found["recipes"].keys()
    assert {"teachers", "students"} <= found.keys()
    assert {"pocket-studio-look", "pocket-toon-look"} <= found["bases"].keys()


def test_the_metrics_of_the_command_are_those_that_can_be_measured() -> None:
    from mcm.cli.evaluate import Metric
    from mcm.evaluation.evaluator import METRICS

    assert set(get_args(Metric)) == set(METRICS)


# What a verb raises, in this process, and what main makes of it.


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    def run(error: BaseException) -> int:
        def fail(*tokens: Any) -> None:
            raise error

        monkeypatch.setattr("mcm.cli.app", fail)
        with pytest.raises(SystemExit) as left:
            main(["generate", "x"])
        return int(str(left.value.code))

    return run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("the folder x\nis missing"), 1, "mcm: the folder x is missing\n"),
        (KeyboardInterrupt(), 130, "mcm: stopped; run the same command again to go on\n"),
        (
            ValueError("odd\nshape"),
            1,
            "internal error: ValueError: odd shape; set MCM_DEBUG=1 to see where\n",
        ),
        (OSError(errno.ENOSPC, "No space left", "a.mp4"), 1, "the disk is full (a.mp4): free some space"),
    ],
)
def test_failures_are_one_line(
    failing: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    monkeypatch.delenv("MCM_DEBUG", raising=False)
    assert failing(error) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_debugging_shows_where(
    failing: Callable[[BaseException], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCM_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        failing(ValueError("odd"))


# How options become a recipe.


@pytest.fixture
def laboratory() -> Recipe:
    data = DataConfig(videos="pocket:broadcast", images="pocket:studio")
    return Recipe(name="r", teacher="t", method=MethodConfig(adversary="pictures"), data=data)


@pytest.mark.parametrize(
    ("given", "data", "adversary"),
    [
        ({}, ("pocket:broadcast", "pocket:studio", None), "pictures"),
        ({"data.images": "p"}, ("pocket:broadcast", "p", None), "pictures"),
        ({"data.videos": "v", "data.images": "p"}, ("v", "p", None), "pictures"),
        ({"data.videos": "v"}, ("v", None, None), "video"),
        ({"data.videos": "v", "method.adversary": "none"}, ("v", None, None), "none"),
        ({"data.videos": "pocket:toon"}, ("pocket:toon", "pocket:studio", None), "pictures"),
        ({"data.prompts": "f"}, (None, "pocket:studio", "f"), "pictures"),
        ({"data.videos": "v", "data.prompts": "f"}, ("v", None, "f"), "video"),
    ],
)
def test_what_follows_from_data_of_ones_own(
    laboratory: Recipe, given: dict[str, str], data: tuple[str | None, ...], adversary: str
) -> None:
    chosen = apply_overrides(laboratory, {**_consequences(laboratory, given), **given})
    assert (chosen.data.videos, chosen.data.images, chosen.data.prompts) == data
    assert chosen.method.adversary == adversary


def test_the_same_command_finds_the_same_folder(laboratory: Recipe, tmp_path: Path) -> None:
    other = apply_overrides(laboratory, {"optim.lr": 1e-3})
    assert _folder("pocket-x", laboratory, laboratory) == Path("runs/pocket-x")
    assert _folder("some/mine.yaml", laboratory, laboratory) == Path("runs/mine")
    assert _folder(str(tmp_path), laboratory, laboratory) == tmp_path
    assert _folder("pocket-x", laboratory, other) == _folder("pocket-x", laboratory, other)
    assert _folder("pocket-x", laboratory, other) != Path("runs/pocket-x")


@pytest.mark.parametrize(
    ("tokens", "plain"),
    [
        (["r", "--optim.lr", "1e-4", "--steps", "3"], ["r", "--set", "optim.lr=1e-4", "--steps", "3"]),
        (["r", "--optim.lr=1e-4"], ["r", "--set", "optim.lr=1e-4"]),
        (["r", "--optim.lr", "-1"], ["r", "--set", "optim.lr=-1"]),
        (["r", "--videos", "./a.b", "--out=x.y"], ["r", "--videos", "./a.b", "--out=x.y"]),
        (["r", "--optim.lr", "--json"], ["r", "--set", "optim.lr", "--json"]),
        (["r", "--optim.lr"], ["r", "--set", "optim.lr"]),
    ],
)
def test_dotted_options(tokens: list[str], plain: list[str]) -> None:
    assert _dotted(tokens) == plain


def test_progress_in_a_log_file_is_sparse(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress() as told:
        for done in range(101):
            told("training", done, 100, "loss 0.5")
        told("decoding", 1, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 0/100, loss 0.5"
    assert lines[-2].startswith("training: 100/100")
    assert lines[-1] == "decoding: 1"
    assert len(lines) == 3


def test_time_left_is_reckoned_from_where_a_run_went_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 of 100 were done before; ten more took 20 seconds each; 50 are left."""
    now = iter((0.0, 200.0, 1200.0))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    told = terminal._Lines(terminal.Console(stderr=True))
    told("training", 40, 100)
    told("training", 50, 100, "motion 0.02  balance 0.10")
    told("training", 100, 100)
    assert capsys.readouterr().err.splitlines() == [
        "training: 40/100", "training: 50/100, 0:16:40 left, motion 0.02  balance 0.10", "training: 100/100",
    ]  # fmt: skip


def test_a_terminal_shows_a_bar_the_time_left_and_the_line_of_health(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = functools.partial(terminal.Console, file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(terminal, "Console", lambda stderr: console())
    with terminal.progress() as told:
        for done in range(4):
            told("training", done, 10, "motion 0.02  balance 0.10")
            time.sleep(0.2)
    seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"training .*3/10 +\d:\d\d:\d\d +left +0:00:\d\d\s+motion 0\.02  balance 0\.10", seen)


# The verbs in this process, around work that is replaced here.


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leave(*tokens: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(tokens)
    return int(str(left.value.code))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("distil x", 'Did you mean "distill"?'),
        ("distill", "RECIPE"),
        ("distill pocket-animatedif", "did you mean 'pocket-animatediff'?"),
        ("distill pocket-animatediff --stepz 3", "Did you mean --steps?"),
        ("distill pocket-animatediff --steps three", "--steps"),
        ("distill pocket-animatediff --steps 0", 'setting "training.updates": expected a whole number'),
        ("distill pocket-animatediff --optim.lrr 3", 'unknown setting "optim.lrr": did you mean "optim.lr"?'),
        ("distill pocket-animatediff --optim.lr=fast", "expected a number above 0"),
        ("distill pocket-animatediff --optim.lr --json", 'the setting "optim.lr" needs a value'),
        ("distill pocket-animatediff --images p --method.adversary none", "leave one of the two out"),
        ("distill pocket-animatediff --resume", "holds no run to resume"),
        ("distill nowhere.yaml", "nowhere.yaml"),
        ("generate x", "--prompt"),
        ("generate x --prompt a --steps 0", ">= 1"),
        ("generate x --prompt a --format mov", '"mp4", "gif", "webp"'),
        ("generate x --prompt a --size 64x", '--size: expected HEIGHTxWIDTH, such as 64x96, or one number, got "64x"'),
        ("generate x --prompt a --size 64x64x64", "--size: expected HEIGHTxWIDTH"),
        ("generate x --prompt a --frames 0", ">= 1"),
        ("generate x --prompt a --controlnet c", "give --pose, too"),
        ("generate x --prompt a --pose-scale 0.5", "give --pose, too"),
        ("generate x --prompt a --pose walk --pose-scale -1", ">= 0"),
        ("evaluate x", "--reference"),
        ("evaluate x --reference y --metrics fvx", 'Did you mean "fvd"?'),
        ("evaluate x --reference y --metrics fid", "give --images"),
        ("evaluate x --reference y --images z --metrics fvd", "add fid to --metrics"),
        ("evaluate x --reference y --metrics clipsim --fvd-model z", "are read by the metric fvd alone"),
        ("list everything", "unexpected 'everything'"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    inside: Path, capsys: pytest.CaptureFixture[str], arguments: str, words: str
) -> None:
    assert leave(*arguments.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mcm: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert list(inside.iterdir()) == [], "wrong usage writes nothing"


def test_generate_writes_videos_and_says_which(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    import mcm.generate as module

    asked: list[Any] = []

    def fake(model: str, prompts: list[str], **settings: Any) -> Iterator[Any]:
        asked.append((model, list(prompts), {**settings, "seeds": list(settings["seeds"])}))
        for prompt, seed in zip(prompts, settings["seeds"], strict=True):
            yield module.Video(prompt, seed, np.zeros((4, 16, 16, 3), np.uint8), 8.0, {"steps": 4})

    monkeypatch.setattr(module, "generate", fake)
    (inside / "prompts.txt").write_text("c\n")
    command = [
        "generate",
        "some/student",
        "--prompt",
        "a",
        "--prompt",
        "b",
        "--prompts",
        "prompts.txt",
        "--count",
        "2",
        "--frames",
        "12",
        "--size",
        "32x48",
    ]
    assert leave(*command, "--seed", "5", "--format", "gif", "--sheet", "--json") == 0
    settings = {
        "seeds": [5, 6, 7, 8, 9, 10], "steps": None, "sampler": None, "guidance_scale": None, "frames": 12,
        "size": (32, 48), "pose": None, "controlnet": None, "pose_scale": 1.0,
        "pose_network": None, "pose_detector": None,
    }  # fmt: skip
    assert asked == [("some/student", ["a", "a", "b", "b", "c", "c"], settings)]
    told = json.loads(capsys.readouterr().out)
    files = [inside / video["file"] for video in told["videos"]]
    assert len(set(files)) == 6
    for file in files:
        assert file.suffix == ".gif"
        assert file.stat().st_size
        assert file.with_suffix(".json").exists()
    assert (inside / told["out"] / "sheet.png").exists()
    assert leave(*command, "--out", told["out"]) == 0, "the same again is allowed"
    capsys.readouterr()
    assert leave("generate", "other", "--prompt", "a", "--out", told["out"]) == 1
    assert "holds another run (model is" in capsys.readouterr().err


def test_generate_leaves_nothing_when_it_fails(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("generate", "no/such", "--prompt", "a", "--out", "videos") == 1
    assert "no/such" in capsys.readouterr().err
    assert list(inside.iterdir()) == []


def test_evaluate_prints_and_keeps_the_report(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mcm.evaluation import run
    from mcm.evaluation.report import Report, Row

    asked: list[Any] = []

    def fake(model: str, **settings: Any) -> Report:
        asked.append({"model": model, **settings})
        row = Row(teacher="t", method="mcm", sampler="consistency", steps=4, guidance=1.0, n=8, fvd=123.456)
        return Report([row], {"date": "now"})

    monkeypatch.setattr(run, "evaluate", fake)
    command = [
        "evaluate",
        "m",
        "--reference",
        "clips",
        "--steps",
        "4",
        "1",
        "--images",
        "p",
        "--out",
        "scores",
    ]
    assert leave(*command) == 0
    assert asked[0]["steps"] == [1, 4]
    assert asked[0]["metrics"] == ["fvd", "clipsim", "motion", "fid"]
    assert "123.5" in capsys.readouterr().out
    assert Report.load(inside / "scores" / "report.json").rows[0].fvd == 123.456
    assert leave(*command, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["steps"] == 4
    judges = ["--fvd-model", "i3d.pt", "--fvd-sha256", "ab", "--clip", "clip"]
    assert leave(*command, *judges) == 1  # other judges are another evaluation
    assert "fvd_model" in capsys.readouterr().err
    assert leave(*command[:-1], "others", *judges) == 0
    assert [asked[-1][name] for name in ("fvd_model", "fvd_sha256", "clip")] == ["i3d.pt", "ab", "clip"]
    capsys.readouterr()
    assert leave(*command, "--seed", "1") == 1
    assert "holds another run (seed is 0 there and 1 here)" in capsys.readouterr().err
