"""The whole evaluation with tiny networks: a student and its teacher against a folder of films."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import CAPTIONS, make_material, recipe

from mcm.distill import distill
from mcm.errors import UserError
from mcm.evaluation.evaluator import Evaluator
from mcm.evaluation.motion import motion_magnitude
from mcm.evaluation.report import Report
from mcm.evaluation.run import evaluate, made
from mcm.generate import Maker, generate, load_maker

TEACHER_FRAMES, STUDENT_FRAMES, COUNT = 5, 4, 5
SEED = 11


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Material with a student in run/; its teacher usually makes another number of frames."""
    folder = make_material(tmp_path_factory.mktemp("material"))
    (folder / "animatediff" / "mcm.json").write_text(json.dumps({"frames": TEACHER_FRAMES, "guidance_scale": 2.0}))
    distill(recipe(folder, optim={"lr": 3e-2, "warmup": 0}, data__frames=STUDENT_FRAMES), folder / "run")
    return folder


@pytest.fixture(scope="module")
def student(place: Path) -> Maker:
    return load_maker(place / "run")


@pytest.fixture(scope="module")
def teacher(place: Path) -> Maker:
    return load_maker(place / "animatediff")


@pytest.fixture(scope="module")
def judges(videomae_folder: Path, clip_folder: Path) -> dict[str, Any]:
    return {"fvd_model": videomae_folder, "clip": clip_folder, "count": COUNT, "seed": SEED, "batch": 2}


@pytest.fixture(scope="module")
def report(place: Path, student: Maker, judges: dict[str, Any]) -> Report:
    return evaluate(
        student, str(place / "clips"), steps=(1, 4), metrics=("fvd", "clipsim", "fid", "motion"),
        images=str(place / "pictures"), **judges,
    )  # fmt: skip


def test_a_row_for_every_number_of_steps(place: Path, report: Report) -> None:
    assert [row.steps for row in report.rows] == [1, 4]
    for row in report.rows:
        assert row.teacher == str(place / "animatediff")
        assert (row.method, row.sampler, row.guidance, row.n) == ("lcm", "consistency", 1.0, COUNT)
        assert row.fvd is not None
        assert row.fvd > 0
        assert row.fid is not None
        assert row.fid > 0
        assert row.clipsim is not None
        assert -100 <= row.clipsim <= 100
        assert row.motion is not None
        assert row.motion > 0
        assert {"fvd", "fid", "clipsim", "motion", "motion_ratio"} <= row.intervals.keys()
        for name in ("clipsim", "motion"):
            low, high = row.intervals[name]
            assert low <= getattr(row, name) <= high  # pyright: ignore[reportOptionalOperand,reportOperatorIssue]
    assert report.rows[0].fvd != report.rows[1].fvd


def test_the_report_tells_how_it_was_measured(report: Report, tmp_path: Path) -> None:
    assert {"mcm", "torch", "python"} <= report.provenance.keys()
    told = json.dumps(report.provenance)
    assert "videomae" in told
    assert '"reference_clips": 3' in told  # the broken film is none
    assert '"pictures": 3' in told
    report.save(tmp_path / "report.json")
    assert [r.to_dict() for r in Report.load(tmp_path / "report.json").rows] == [r.to_dict() for r in report.rows]


def test_the_figures_are_those_of_the_videos_that_generate_makes(
    place: Path, student: Maker, report: Report, clip_folder: Path
) -> None:
    """Captions of the reference in turn, seeds counted on: anyone can make the same videos."""
    prompts = [CAPTIONS[i % 3] for i in range(COUNT)]
    videos = [v.frames for v in generate(student, prompts, seeds=[SEED], steps=4)]
    clips = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    by_hand = Evaluator(("clipsim", "motion"), clip=clip_folder)
    by_hand.add(clips, prompts)
    assert float(by_hand.values("clipsim").mean()) == pytest.approx(report.rows[1].clipsim, abs=0.05)
    assert float(by_hand.values("motion").mean()) == pytest.approx(report.rows[1].motion, rel=0.05)


def test_the_teacher_is_measured_at_the_students_frames(student: Maker, teacher: Maker, report: Report) -> None:
    """Same prompts, same seeds, same shape of noise: else the two are not a pair."""
    assert (teacher.frames, student.frames) == (TEACHER_FRAMES, STUDENT_FRAMES)
    prompts = [CAPTIONS[i % 3] for i in range(COUNT)]
    seeds = [SEED + i for i in range(COUNT)]
    z = teacher.latents(prompts, seeds, 25, "dpm++", frames=STUDENT_FRAMES, size=student.size)
    moved = float(motion_magnitude(teacher.decode(z)).mean())
    for row in report.rows:
        assert row.motion is not None
        assert row.motion_ratio == pytest.approx(row.motion / moved, rel=1e-3)


def test_a_teacher_moves_as_much_as_itself(place: Path, teacher: Maker, judges: dict[str, Any]) -> None:
    found = evaluate(teacher, str(place / "clips"), steps=(3, 25), metrics=("motion",), **{**judges, "count": 2})
    few, usual = found.rows
    assert usual.motion_ratio == pytest.approx(1.0, abs=1e-9)
    assert few.motion_ratio != pytest.approx(1.0, abs=1e-3)
    assert (usual.method, usual.sampler, usual.guidance) == ("dpm++", "dpm++", 2.0)
    assert (usual.fvd, usual.fid, usual.clipsim) == (None, None, None)


def test_a_teachers_row_with_another_sampler_and_guidance(place: Path, teacher: Maker, judges: dict[str, Any]) -> None:
    (row,) = evaluate(
        teacher, str(place / "clips"), steps=(2,), metrics=("clipsim",), sampler="ddim", guidance_scale=1.0, **judges
    ).rows
    assert (row.method, row.sampler, row.guidance) == ("ddim", "ddim", 1.0)
    assert row.motion_ratio is None
    assert row.clipsim is not None


def test_without_pictures_there_is_no_fid(place: Path, student: Maker, judges: dict[str, Any]) -> None:
    (row,) = evaluate(student, str(place / "clips"), steps=(1,), metrics=("fvd", "clipsim"), **judges).rows
    assert row.fid is None
    assert row.to_dict()["fid"] is None  # null in the file
    assert row.fvd is not None


def test_prompts_of_ones_own(place: Path, student: Maker, judges: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a puppet\na red puppet\n")
    how = {"steps": (1,), "metrics": ("clipsim",), **judges}
    (one,) = evaluate(student, str(place / "clips"), prompts=tmp_path / "prompts.txt", **how).rows
    (two,) = evaluate(student, str(place / "clips"), prompts=["a puppet", "a red puppet"], **how).rows
    (other,) = evaluate(student, str(place / "clips"), **how).rows
    assert one.clipsim == two.clipsim
    assert one.clipsim != other.clipsim
    assert one.n == COUNT


def test_batches_do_not_change_what_is_measured(place: Path, student: Maker, judges: dict[str, Any]) -> None:
    how = {"steps": (2,), "metrics": ("clipsim",), **judges}
    (one,), (two,) = (evaluate(student, str(place / "clips"), **{**how, "batch": b}).rows for b in (1, 5))
    assert one.clipsim == pytest.approx(two.clipsim, abs=1e-2)


def test_seconds_are_those_of_one_clip(
    place: Path, student: Maker, judges: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0, 10 * COUNT)  # ten seconds a clip between any two looks at it
    monkeypatch.setattr("mcm.evaluation.run.time", SimpleNamespace(monotonic=lambda: next(clock)))
    (row,) = evaluate(student, str(place / "clips"), steps=(1,), metrics=("clipsim",), **judges).rows
    assert row.seconds == pytest.approx(10)


def test_videos_come_in_order_with_seeds_counted_on(student: Maker) -> None:
    prompts = [CAPTIONS[i % 3] for i in range(3)]
    told: list[tuple[str, int, int]] = []
    batches = list(
        made(student, prompts, 4, 1, None, None, 2, lambda what, done, total, note="": told.append((what, done, total)))
    )
    assert [texts for _, texts in batches] == [prompts[:2], prompts[2:]]
    assert told == [("videos", 2, 3), ("videos", 3, 3)]
    last = student.decode(student.latents(prompts[2:], [6], 1))
    torch.testing.assert_close(batches[1][0], last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ("fdv",)}, r"metric 'fdv'.*did you mean 'fvd'"),
        ({"metrics": ()}, r"no metric"),
        ({"metrics": ("fid",)}, r"'fid' needs pictures"),
        ({"steps": (1, 99)}, r"got 99"),
        ({"sampler": "ddim"}, r"made for the sampler 'consistency'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_before_any_film_is_read(
    student: Maker, judges: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    """The reference does not even exist, and that is not what is said."""
    with pytest.raises(UserError, match=message):
        evaluate(student, "no/such/folder", **{"steps": (1,), "metrics": ("clipsim",), **judges, **settings})


def test_a_reference_that_is_nowhere(student: Maker, judges: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"no such folder.*no/such/folder"):
        evaluate(student, "no/such/folder", steps=(1,), metrics=("fvd",), **judges)
