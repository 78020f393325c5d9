"""The bench: one way for every system, nothing made twice, the best trial taken, the table in the suite's order."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_run import make_material, recipe

import mcm.distill
from mcm.bench import GUIDANCE, Bench, Suite, System, bench, suite, together
from mcm.bench.run import _best
from mcm.card import StudentCard
from mcm.errors import UserError
from mcm.evaluation.report import Report, Row
from mcm.recipe import Recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("bench"))


class Counting:
    """Scores a system by what it really makes: the mean of a clip's pixels, as far from 0 as can be is worst."""

    evaluator: Any = SimpleNamespace(protocol=dict)

    def __init__(self, count: int, tuning: bool, out: Path) -> None:
        self.count, self.tuning, self.asked = count, tuning, []

    def row(self, maker: Any, method: str, steps: int, sampler: Any = None, guidance: Any = None, **kept: Any) -> Row:
        self.asked.append((method, steps, guidance))
        z = maker.latents(["a red puppet walks"] * 2, [0, 1], steps, sampler, guidance)
        own = {key: kept[key] for key in ("seed", "updates") if key in kept}
        return Row(
            teacher="tiny", method=method, sampler=maker.sampler(sampler).name, steps=steps,
            guidance=maker.guidance(guidance), n=self.count, fvd=float(z.mean().abs()), **own,
        )  # fmt: skip


def tiny_suite(place: Path, *systems: System, **changed: Any) -> Suite:
    teacher = str(place / "animatediff")
    how: dict[str, Any] = {"updates": 4, "tuning": 0.5, "count": 3, "trial_count": 2, "trial_steps": 2}
    return Suite("tiny", systems, Counting, recipes={teacher: recipe(place)}, **{**how, **changed})


def lcm(place: Path, **changed: Any) -> System:
    how: dict[str, Any] = {"settings": {"method.name": "lcm"}, "steps": (1, 2), **changed}
    return System(str(place / "animatediff"), how.pop("method", "lcm"), **how)


def test_the_best_trial_is_made_at_the_whole_budget(place: Path, tmp_path: Path) -> None:
    system = lcm(place, trials=({"optim.lr": 1e-5}, {"optim.lr": 3e-2}))
    report = bench(tiny_suite(place, system), tmp_path / "out")
    tried = json.loads((tmp_path / "out" / "tuning" / "animatediff.lcm.json").read_text())
    assert [one["settings"] for one in tried] == [{"optim.lr": 1e-5}, {"optim.lr": 3e-2}]
    best = min(tried, key=lambda one: one["fvd"])["settings"]["optim.lr"]
    assert tried[0]["fvd"] != tried[1]["fvd"]
    card = StudentCard.load(tmp_path / "out" / "students" / "animatediff.lcm" / "student")
    assert card.provenance.recipe["optim"]["lr"] == best
    assert card.provenance.updates == 4
    trial = StudentCard.load(tmp_path / "out" / "tuning" / "animatediff.lcm" / "0" / "student")
    assert (trial.provenance.updates, card.provenance.seed) == (2, 0)
    assert trial.provenance.seed != card.provenance.seed  # what was tuned on is not what is reported
    assert [(row.steps, row.seed, row.updates) for row in report.rows] == [(1, 0, 4), (2, 0, 4)]
    assert report.provenance["systems"]["animatediff.lcm"]["settings"]["optim.lr"] == best


def test_what_exists_is_not_made_again(place: Path, tmp_path: Path) -> None:
    system = lcm(place)
    made = tiny_suite(place, system)
    bench(made, tmp_path)
    file = tmp_path / "rows" / "animatediff.lcm.json"
    rows = Report.load(file)
    Report(rows.rows[:1], rows.provenance).save(file)  # stopped between the cells
    work = Bench(made, tmp_path)
    work.measure(system)
    assert work.held_out(system).asked == [("lcm", 2, None)]  # pyright: ignore[reportAttributeAccessIssue]
    assert Report.load(file).rows == rows.rows
    again = Bench(made, tmp_path)
    again.measure(system)
    assert not again._held_out  # nothing was even loaded


def test_another_budget_needs_another_folder(place: Path, tmp_path: Path) -> None:
    made = tiny_suite(place, lcm(place))
    bench(made, tmp_path)
    with pytest.raises(UserError, match="updates is 4 there and 5 here"):
        bench(replace(made, updates=5), tmp_path)


def test_a_system_takes_what_was_found_for_another(place: Path, tmp_path: Path) -> None:
    first = lcm(place, trials=({"optim.lr": 1e-5}, {"optim.lr": 3e-2}))
    like = lcm(place, method="other", like="animatediff.lcm", last={"optim.warmup": 3}, share=0.5, steps=(1,), seed=1)
    made = tiny_suite(place, like, first)
    report = bench(made, tmp_path)
    cards = [
        StudentCard.load(tmp_path / "students" / name / "student").provenance
        for name in ("animatediff.lcm", "animatediff.other.seed1")
    ]
    assert cards[0].recipe["optim"]["lr"] == cards[1].recipe["optim"]["lr"]
    assert (cards[1].recipe["optim"]["warmup"], cards[1].updates, cards[1].seed) == (3, 2, 1)
    assert [row.method for row in report.rows] == ["other", "lcm", "lcm"]  # in the suite's order


def test_a_system_goes_on_after_another_with_a_budget_of_its_own(place: Path, tmp_path: Path) -> None:
    pictures = {"method.name": "frames", "method.adversary": "pictures", "data.images": str(place / "pictures")}
    second = lcm(place, method="two-stage", settings=pictures, after="animatediff.lcm", steps=(1,))
    made = tiny_suite(place, second, lcm(place, trials=({"optim.lr": 1e-5}, {"optim.lr": 3e-2})))
    bench(made, tmp_path, only=["*.two-stage"])  # makes what it needs
    before, run = (tmp_path / "students" / f"animatediff.{name}" for name in ("lcm", "two-stage"))
    told, own = (StudentCard.load(at / "student").provenance for at in (before, run))
    assert (told.recipe["method"]["name"], told.updates) == ("lcm", 4)
    assert told.recipe["optim"]["lr"] == Bench(made, tmp_path).settings(made.systems[1])["optim.lr"]
    assert (own.recipe["method"]["name"], own.updates) == ("frames", 4)
    assert own.recipe["student"]["start"] == str(before)
    written = (before / "student" / "card.json").stat().st_mtime_ns
    assert len(bench(made, tmp_path).rows) == 3
    assert (before / "student" / "card.json").stat().st_mtime_ns == written
    assert [made.depth(system) for system in made.systems] == [1, 0]


def test_a_student_is_sampled_in_another_way(place: Path, tmp_path: Path) -> None:
    kept = lcm(place, method="lcm-tcd", settings={}, sampler="tcd", of="animatediff.lcm", steps=(2,))
    made = tiny_suite(place, kept, lcm(place, trials=({"optim.lr": 1e-5}, {"optim.lr": 3e-2}), seed=3))
    made = replace(made, systems=(replace(kept, of=made.systems[1].name), made.systems[1]))
    report = bench(made, tmp_path)
    assert [path.name for path in (tmp_path / "students").iterdir()] == ["animatediff.lcm.seed3"]
    rows = {row.sampler: row for row in report.rows if row.steps == 2}
    assert (rows["tcd"].method, rows["consistency"].method) == ("lcm-tcd", "lcm")
    assert {(row.seed, row.updates) for row in rows.values()} == {(3, 4)}
    assert rows["tcd"].fvd != rows["consistency"].fvd
    assert [made.depth(system) for system in made.systems] == [1, 0]


def test_the_best_trial_has_not_paid_with_the_action(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    scored = iter([(4.0, 0.95), (1.0, 0.80), (2.0, 0.91), (3.0, 0.97)])

    def row(self: Counting, maker: Any, method: str, steps: int, *given: Any, **kept: Any) -> Row:
        fid, action = next(scored)
        return Row(
            teacher="tiny", method=method, sampler="dpm++", steps=steps, guidance=1.0, n=2, fid=fid,
            action_accuracy=action,
        )  # fmt: skip

    monkeypatch.setattr(Counting, "row", row)
    scales = tuple({GUIDANCE: scale} for scale in (1.0, 2.0, 3.0, 4.0))
    system = System(str(place / "animatediff"), "dpm++", sampler="dpm++", trials=scales, by="fid", steps=(2,))
    # 0.80 and 0.91 are more than 5 points below 0.97.
    assert Bench(tiny_suite(place, system), tmp_path).settings(system) == {GUIDANCE: 4.0}


@pytest.mark.parametrize(
    ("start", "chosen"),
    [(0.0, 2), (0.90, 2), (0.97, 3), (1.0, 2)],  # 1.0: none is within 5 points of it, so the trials alone say
)
def test_the_best_trial_has_kept_the_action_of_its_start(start: float, chosen: int) -> None:
    scored = [(4.0, 0.70), (1.0, 0.80), (2.0, 0.90), (3.0, 0.94)]
    tried = [{"fid": fid, "row": {"action_accuracy": action}} for fid, action in scored]
    assert tried.index(_best(tried, "fid", start)) == chosen


def test_the_action_of_the_start_is_scored_as_the_trials_are(place: Path, tmp_path: Path) -> None:
    pictures = {"method.name": "frames", "method.adversary": "pictures", "data.images": str(place / "pictures")}
    trials = ({"optim.lr": 1e-5}, {"optim.lr": 1e-4})
    second = lcm(place, method="two-stage", settings=pictures, after="animatediff.lcm", trials=trials, trial_steps=1)
    work = Bench(tiny_suite(place, second, lcm(place)), tmp_path)
    work.settings(second)
    assert work.tuning.asked == [("two-stage", 1, None)] * 3  # pyright: ignore[reportAttributeAccessIssue]
    start = json.loads((tmp_path / "tuning" / "animatediff.two-stage.start.json").read_text())
    tried = json.loads((tmp_path / "tuning" / "animatediff.two-stage.json").read_text())
    assert start["steps"] == 1
    assert start["fvd"] not in {one["fvd"] for one in tried}
    again = Bench(work.suite, tmp_path)
    assert again.settings(second) == work.settings(second)
    assert again.tuning.asked == []  # pyright: ignore[reportAttributeAccessIssue]


def test_the_teachers_own_samplers_are_tuned_by_guidance(place: Path, tmp_path: Path) -> None:
    scales = tuple({GUIDANCE: scale} for scale in (1.0, 3.0, 8.0))
    system = System(str(place / "animatediff"), "ddim", sampler="ddim", trials=scales, steps=(3,))
    report = bench(tiny_suite(place, system), tmp_path)
    tried = json.loads((tmp_path / "tuning" / "animatediff.ddim.json").read_text())
    assert len({one["fvd"] for one in tried}) == 3
    assert report.rows[0].guidance == min(tried, key=lambda one: one["fvd"])["settings"][GUIDANCE]
    assert report.rows[0].updates is None
    assert not (tmp_path / "students").exists()


def test_a_part_of_a_suite(place: Path, tmp_path: Path) -> None:
    made = tiny_suite(place, lcm(place), lcm(place, method="other"))
    bench(made, tmp_path, only=["*.other"])
    assert {row.method for row in together(made, tmp_path).rows} == {"other"}
    with pytest.raises(UserError, match="no system of the suite tiny fits nothing"):
        bench(made, tmp_path, only=["nothing"])


def test_the_pocket_suite_is_the_papers_table() -> None:
    pocket = suite("pocket")
    names = [system.name for system in pocket.systems]
    assert len(set(names)) == len(names)
    for system in pocket.systems:
        assert {system.like, system.after, system.of} <= {None, *names}
        if system.sampler is None:
            pocket.recipe(system.teacher)  # exists
        assert len(system.trials) in (0, 4), "the same number of trials for all"
        untuned = system.like or system.of or system.name.endswith("dpm++-large.25")  # the last at its usual guidance
        assert bool(untuned) == (not system.trials)
        method = system.settings.get("method.name")
        if method in ("frames", "animatediff-lightning"):  # one loss alone, whose weight AdamW does not see
            assert all("method.adversarial_weight" not in trial for trial in system.trials)
    methods = {system.method for system in pocket.systems}
    assert {"ddim", "dpm++", "lcm", "lcm+frames", "animatelcm", "animatediff-lightning", "mcm"} <= methods
    for teacher in ("pocket-animatediff", "pocket-modelscope"):
        table = [s for s in pocket.systems if s.teacher == teacher]
        for method in ("lcm", "mcm"):
            assert {s.seed for s in table if s.method == method} == {0, 1}
    with pytest.raises(UserError, match=r"unknown suite 'pokcet'.*pocket"):
        suite("pokcet")


def test_lightning_learns_over_three_bases_from_clips_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials and runs share them, and no other system has them: they are of prompts and of bases."""
    asked: list[tuple[Recipe, Path]] = []
    monkeypatch.setattr(mcm.distill, "distill", lambda recipe, run, progress, cache: asked.append((recipe, cache)))
    pocket = suite("pocket")
    bench = Bench(pocket, tmp_path)
    rows = [s for s in pocket.systems if s.teacher == "pocket-animatediff" and s.table and s.sampler is None]
    for system in rows:
        bench._distil(system, {**pocket.shared, **system.settings}, tmp_path / system.name, 75)
        if system.method == "animatediff-lightning":
            other = replace(system, seed=1000)
            bench._distil(other, {**pocket.shared, **system.settings}, tmp_path / "trial", 75)
    caches: dict[str, set[Path]] = {}
    for chosen, cache in asked:
        lightning = chosen.method.name == "animatediff-lightning"
        assert chosen.method.bases == (("teacher", "pocket-studio-look", "pocket-toon-look") if lightning else ())
        assert chosen.data.videos == (None if lightning else "pocket:broadcast")
        assert chosen.training.updates == 75
        caches.setdefault(chosen.method.name, set()).add(cache)
    made = caches.pop("animatediff-lightning")
    assert len(made) == 1
    assert not made & set().union(*caches.values())


@pytest.mark.parametrize("system", [s for s in suite("pocket").systems if s.sampler is None], ids=lambda s: s.name)
def test_every_setting_of_the_pocket_suite_is_one(system: System) -> None:
    from mcm.recipe import apply_overrides

    pocket = suite("pocket")
    found = system if system.like is None else pocket.named(system.like)
    for trial in found.trials or ({},):
        built = apply_overrides(
            pocket.recipe(system.teacher), {**pocket.shared, **system.settings, **trial, **system.last}
        )
        built.method.build()


def test_scores_are_of_the_held_out_prompts_and_trials_of_others(tmp_path: Path) -> None:
    from mcm.pocket import world
    from mcm.pocket.scoring import Scoring

    tuning = Scoring(4, 8, tuning=True, styles=())
    reported = Scoring(4, 8, styles=())
    assert reported.prompts == world.held_out_prompts(4)
    assert not set(tuning.prompts) & set(world.held_out_prompts(len(world.HELD_OUT_COMBINATIONS) * 3))
    assert tuning.seed != reported.seed


def test_what_is_of_all_rows_is_kept_between_processes(tmp_path: Path) -> None:
    from mcm.pocket.scoring import Scoring

    first, fresh = Scoring(4, 8, styles=("toon",), kept=tmp_path), Scoring(4, 8, styles=("toon",))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 3
    for scoring in (first, Scoring(4, 8, styles=("toon",), kept=tmp_path)):
        assert np.array_equal(scoring.evaluator.reference.mean, fresh.evaluator.reference.mean)
        assert np.array_equal(scoring.styles["toon"].cov, fresh.styles["toon"].cov)
    for name in files:
        np.save(tmp_path / name, np.load(tmp_path / name) + 1)
    again = Scoring(4, 8, styles=("toon",), kept=tmp_path)
    np.testing.assert_allclose(again.styles["toon"].mean, fresh.styles["toon"].mean + 1)  # it is what is read
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    Scoring(4, 9, styles=("toon",), kept=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6  # another number of clips is another file


def test_curves_and_a_wall_of_what_is_finished(place: Path, tmp_path: Path) -> None:
    from PIL import Image

    from mcm.bench.pictures import draw, write_page
    from mcm.evaluation.wall import Wall

    teacher = str(place / "animatediff")
    systems = (
        System(teacher, "ddim", sampler="ddim", steps=(2,), table=True), lcm(place, steps=(2,), table=True),
        lcm(place, method="never made", table=True), lcm(place, method="aside", steps=(2,)),
        lcm(place, method="look", after="animatediff.lcm", steps=(2,)),
        lcm(place, method="large", settings={}, of="animatediff.lcm", steps=(1,), shape=(4, (32, 32))),
    )  # fmt: skip
    made = tiny_suite(place, *systems, shown=("a red puppet walks", "a puppet at night"))
    only = ["*.ddim", "*.lcm", "*.aside", "*.look", "*.large"]
    bench(made, tmp_path, only=only)
    report = together(made, tmp_path)
    # (The counting scorer calls every teacher "tiny"; the wall looks for the teacher's own name.)
    report.rows[:] = [replace(row, teacher="animatediff") for row in report.rows]
    for kind in ("students", "clips"):  # rows, what was tuned and what is shown are enough to go on elsewhere
        shutil.rmtree(tmp_path / kind)
    bench(made, tmp_path, only=only)
    assert not (tmp_path / "students").exists()
    kept = Wall()
    drawn = draw(made, tmp_path, report, kept)
    # The look beside the student that it went on from, and the table's student at a size of its own.
    walls = ["wall-animatediff.gif", "looks-animatediff.gif", "large-animatediff.gif"]
    assert [path.name for path in drawn] == ["curves.svg", "curves.png", *walls]
    with Image.open(drawn[-3]) as wall, Image.open(drawn[-2]) as looks, Image.open(drawn[-1]) as large:
        frames = [shown.n_frames for shown in (wall, large)]  # pyright: ignore[reportAttributeAccessIssue]
        assert frames == [16, 4]
        assert wall.size == looks.size
        assert wall.width > 2 * 32  # two columns of 16 pixels, twice their size
    assert [(one.method, one.steps, one.prompt, one.seed) for one in kept.shown] == [
        (method, 2, prompt, seed) for method in ("ddim", "lcm") for seed, prompt in enumerate(made.shown, 1)
    ]
    page = write_page(made, tmp_path, report, kept)
    assert page == tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("<img ") == 2 * len(kept.shown)  # the films, and a frame of each
    assert "aside" in text  # in the table of numbers, though not among the curves
    assert "aside" not in text[text.index("Step curves") : text.index("<h2>Videos")]
