"""Generation with tiny models: what a video depends on, what a student refuses, and the files that are written."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import make_material, recipe

from mcm.data.video import probe, read_clip
from mcm.distill import distill
from mcm.errors import UserError
from mcm.generate import Maker, Video, generate, load_maker, pair_seeds, save_video
from mcm.models.guidance import guided
from mcm.samplers import sampler

PROMPTS = ["a red puppet walks", "a blue puppet jumps", "a puppet at night"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A run's folder with a student in it that has left its teacher."""
    distill(recipe(place, optim={"lr": 3e-2, "warmup": 0}, data__fps=6.0), place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def student(run: Path) -> Maker:
    return load_maker(run)


@pytest.fixture(scope="module")
def teacher(place: Path) -> Maker:
    return load_maker(place / "animatediff")


def made(maker: Maker, prompts: list[str] = PROMPTS, **settings: Any) -> list[Video]:
    settings = {"seeds": [7], "frames": 4, **settings}
    return list(generate(maker, prompts, **settings))


def apart(a: Video, b: Video) -> int:
    """The largest difference of two videos, in steps of 1/255."""
    return int(np.abs(a.frames.astype(int) - b.frames.astype(int)).max())


# What a video depends on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_video_does_not_depend_on_its_batch(who: str, request: pytest.FixtureRequest) -> None:
    maker: Maker = request.getfixturevalue(who)
    steps = {"student": 4, "teacher": 3}[who]
    alone, together = made(maker, steps=steps, batch=1), made(maker, steps=steps, batch=3)
    assert [v.seed for v in alone] == [v.seed for v in together] == [7, 8, 9]
    assert all(apart(a, b) <= 1 for a, b in zip(alone, together, strict=True))
    z = [maker.latents(PROMPTS[i : i + 1], [7 + i], steps, frames=4) for i in range(3)]
    whole = maker.latents(PROMPTS, [7, 8, 9], steps, frames=4)
    torch.testing.assert_close(torch.cat(z), whole, atol=1e-4, rtol=1e-4)
    # the order does not matter either
    turned = maker.latents(PROMPTS[::-1], [9, 8, 7], steps, frames=4).flip(0)
    torch.testing.assert_close(turned, whole, atol=1e-4, rtol=1e-4)


def test_a_seed_is_a_video(student: Maker, teacher: Maker) -> None:
    for maker in (student, teacher):
        one, again, other = made(maker, [PROMPTS[0]] * 3, seeds=[3, 3, 4], steps=2, batch=3)
        assert np.array_equal(one.frames, again.frames)
        assert apart(one, other) > 5
        (later,) = made(maker, PROMPTS[:1], seeds=[3], steps=2)
        assert apart(later, one) <= 1


def test_one_prompt_may_be_a_plain_text(student: Maker) -> None:
    (alone,) = generate(student, PROMPTS[0], seeds=[7], frames=4)
    assert apart(alone, made(student, PROMPTS[:1])[0]) == 0


def test_the_prompt_matters(student: Maker) -> None:
    one, other = (student.latents([text], [3], 2) for text in PROMPTS[:2])
    assert float((one - other).abs().max()) > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_student_makes_videos_with_few_steps(student: Maker, run: Path, steps: int) -> None:
    (video,) = list(generate(student, PROMPTS[:1], steps=steps))
    assert video.frames.shape == (4, 16, 16, 3)
    assert video.frames.dtype == np.uint8
    assert video.fps == 6.0  # the card's
    assert video.settings == {
        "model": str(run), "prompt": PROMPTS[0], "seed": 0, "steps": steps, "sampler": "consistency",
        "guidance_scale": 1.0, "frames": 4, "size": [16, 16], "fps": 6.0,
    }  # fmt: skip


def test_steps_differ_and_four_are_usual(student: Maker, teacher: Maker) -> None:
    by_steps = [student.latents(PROMPTS[:1], [0], steps) for steps in (1, 2, 4, 8)]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in itertools.pairwise(by_steps))
    (video,) = generate(student, PROMPTS[:1])
    assert video.settings["steps"] == 4
    assert teacher.default_steps == 25


def test_the_student_is_not_its_teacher(place: Path, student: Maker) -> None:
    bare = load_maker(place / "animatediff")
    z = torch.randn(1, *bare.model.latent_shape(4), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([759])
    assert student.student is not None
    with torch.no_grad():
        said = student.student(z, t, student.model.text(PROMPTS[:1])).eps
        wanted = bare.model.denoiser(z, t, bare.model.text(PROMPTS[:1])).eps
    assert float((said - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_a_teacher_takes_any_sampler_and_guidance(teacher: Maker, sampler: str) -> None:
    (usual,) = made(teacher, PROMPTS[:1], steps=3, sampler=sampler)
    assert usual.settings["sampler"] == sampler
    assert usual.settings["guidance_scale"] == teacher.model.guidance_scale
    assert usual.frames.shape == (4, 16, 16, 3)
    (none,) = made(teacher, PROMPTS[:1], steps=3, sampler=sampler, guidance_scale=1.0)
    assert none.settings["guidance_scale"] == 1.0
    assert not np.array_equal(usual.frames, none.frames)


def test_samplers_are_not_the_same(teacher: Maker) -> None:
    ddim, dpm = (teacher.latents(PROMPTS[:1], [0], 3, name, frames=4) for name in ("ddim", "dpm++"))
    assert float((ddim - dpm).abs().max()) > 1e-3


def test_a_teacher_by_its_folder(place: Path) -> None:
    (video,) = generate(place / "modelscope", PROMPTS[:1], steps=1, frames=3, size=(8, 16))
    assert video.frames.shape == (3, 8, 16, 3)
    assert video.settings["sampler"] == "dpm++"


def test_guidance_is_both_halves_in_one_pass(teacher: Maker) -> None:
    """uncond + scale (cond - uncond), against two passes by hand."""
    z = torch.randn(2, *teacher.model.latent_shape(4), generator=torch.Generator().manual_seed(0))
    t, text = torch.tensor([500, 500]), teacher.model.text(PROMPTS[:2])
    with torch.no_grad():
        found = guided(teacher.model.denoiser, z, t, text, teacher.model.text([""]), 3.0)
        cond, uncond = teacher.model.denoiser(z, t, text), teacher.model.denoiser(z, t, teacher.model.text([""]))
    torch.testing.assert_close(found.eps, uncond.eps + 3 * (cond.eps - uncond.eps), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.x0, uncond.x0 + 3 * (cond.x0 - uncond.x0), atol=1e-3, rtol=1e-3)


def test_a_student_may_keep_some_of_its_noise(student: Maker) -> None:
    """TCD's sampler stands in for consistency sampling, on the times of the student's card."""
    assert student.card is not None
    points = student.card.sampler_settings()["original_steps"]
    assert student.sampler("tcd") == sampler("tcd", original_steps=points)
    one, two = (list(generate(student, PROMPTS[:1], steps=4, sampler=name)) for name in ("tcd", None))
    assert one[0].settings["sampler"] == "tcd"
    assert two[0].settings["sampler"] == "consistency"
    assert (one[0].frames != two[0].frames).any()


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"1 to 50 steps, got 0"),
        ({"steps": 51}, r"1 to 50 steps, got 51"),
        ({"sampler": "ddim"}, r"made for the sampler 'consistency' and cannot be sampled with 'ddim'.*or take 'tcd'"),
        ({"seeds": [1, 2]}, r"2 seeds for 3 prompts"),
        ({"seeds": [-1]}, r"seed -1"),
        ({"seeds": [5, 2**63, 1]}, rf"seed {2**63}"),
        ({"frames": 0}, r"frames 0"),
        ({"frames": 17}, r"frames 17.*1 to 16"),
        ({"size": (16, 18)}, r"multiples of 4"),
        ({"batch": 0}, r"batch 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused_before_anything_is_made(
    student: Maker, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(student, PROMPTS, **settings)  # not even asked for the first video


def test_an_unknown_sampler_names_the_nearest(teacher: Maker) -> None:
    with pytest.raises(UserError, match=r"'dimm'.*did you mean 'ddim'"):
        generate(teacher, PROMPTS, sampler="dimm")
    assert generate(teacher, [], seeds=[0]) is not None
    assert list(generate(teacher, [])) == []


def test_a_students_own_sampler_may_be_named(student: Maker) -> None:
    (one,), (other,) = (made(student, PROMPTS[:1], steps=1, sampler=name) for name in (None, "consistency"))
    assert np.array_equal(one.frames, other.frames)


def test_seeds_count_on() -> None:
    assert pair_seeds(PROMPTS, [4]) == [4, 5, 6]
    assert pair_seeds(PROMPTS, [9, 9, 1]) == [9, 9, 1]
    assert pair_seeds(PROMPTS[:1], [2**63 - 1]) == [2**63 - 1]


def test_a_student_of_another_teacher_is_refused(place: Path, run: Path, tmp_path: Path) -> None:
    """The teacher's folder now holds another network than the one that the card names."""
    shutil.copytree(place / "animatediff", tmp_path / "animatediff")
    shutil.copytree(run / "student", tmp_path / "student")
    card = json.loads((tmp_path / "student" / "card.json").read_text())
    card["teacher"]["name"] = str(tmp_path / "animatediff")
    (tmp_path / "student" / "card.json").write_text(json.dumps(card))
    assert load_maker(tmp_path / "student" / "card.json").frames == 4  # the same network elsewhere will do

    path = tmp_path / "animatediff" / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "sample_size": 4}))
    with pytest.raises(UserError, match=r"was made from another .*animatediff than the one here"):
        load_maker(tmp_path / "student")
    shutil.rmtree(tmp_path / "animatediff")
    with pytest.raises(UserError, match=r"teacher .*animatediff: no such folder"):
        load_maker(tmp_path / "student")


@pytest.mark.parametrize("name", ["no-such-model", "no/such/folder/here"])
def test_a_model_that_is_nowhere(name: str) -> None:
    with pytest.raises(UserError, match=name):
        load_maker(name)


def test_the_cards_betas_are_those_that_are_sampled_with(place: Path, run: Path, tmp_path: Path) -> None:
    """The published code trained on one schedule and sampled on another; here the card decides."""
    shutil.copytree(run / "student", tmp_path / "student")
    path = tmp_path / "student" / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "scheduler": {**card["scheduler"], "beta_end": 0.02}}))
    other, own = load_maker(path), load_maker(run)
    t = torch.tensor([500])
    assert float(other.model.path.alpha(t)) < float(own.model.path.alpha(t)) - 0.01
    assert other.model.denoiser.path is other.model.path


# Files ---------------------------------------------------------------------------------------------------------------


def smooth(seed: int = 5) -> Video:
    """A video that a codec keeps: a grey ramp that moves, 6 frames of 32 x 48."""
    x = np.arange(48)[None, None, :] + 4 * np.arange(6)[:, None, None] + np.arange(32)[None, :, None]
    frames = np.repeat((x * 2 + 20).astype(np.uint8)[..., None], 3, axis=3)
    return Video("A Red puppet, walking: in/the park!", seed, frames, 6.0, {"steps": 4, "size": (32, 48)})


def test_mp4_and_json(tmp_path: Path) -> None:
    video = smooth()
    path = save_video(video, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "a-red-puppet-walking-in-the-park-5.mp4"
    assert sorted(p.name for p in path.parent.iterdir()) == [path.with_suffix(".json").name, path.name]
    assert json.loads(path.with_suffix(".json").read_text()) == {"steps": 4, "size": [32, 48]}
    info = probe(path)
    assert (info.size, info.frames, info.fps) == ((32, 48), 6, 6)
    back = read_clip(path, 6, (32, 48)).permute(1, 2, 3, 0).add(1).mul(127.5).numpy()
    assert float(np.abs(back - video.frames).mean()) < 3


def test_a_students_video_comes_back_from_its_file(student: Maker, tmp_path: Path) -> None:
    (video,) = made(student, PROMPTS[:1], size=(32, 32))
    path = save_video(video, tmp_path)
    assert json.loads(path.with_suffix(".json").read_text()) == video.settings
    back = read_clip(path, 4, (32, 32)).permute(1, 2, 3, 0).add(1).mul(127.5).numpy()
    grey, wanted = back.mean(axis=-1), video.frames.mean(axis=-1)  # its colours are halved in size
    assert float(np.abs(grey - wanted).mean()) < 12
    assert float(np.corrcoef(grey.ravel(), wanted.ravel())[0, 1]) > 0.9


def test_gif(tmp_path: Path) -> None:
    video = smooth()
    path = save_video(video, tmp_path, "gif")
    assert path.suffix == ".gif"
    assert path.with_suffix(".json").exists()
    with Image.open(path) as film:
        assert (film.n_frames, film.size) == (6, (48, 32))  # pyright: ignore[reportAttributeAccessIssue]
        film.seek(3)
        found = np.asarray(film.convert("RGB")).astype(int)
    assert np.abs(found - video.frames[3]).max() <= 2


def test_names_of_files(tmp_path: Path) -> None:
    def name(prompt: str) -> str:
        return save_video(Video(prompt, 1, smooth().frames, 6.0), tmp_path, "gif").name

    assert name("!!!") == "video-1.gif"
    assert name("../../etc/passwd") == "etc-passwd-1.gif"
    assert name("Ein Mädchen springt") == "ein-mädchen-springt-1.gif"
    long = "a person in a red shirt and blue trousers walking in a park, the camera pans "
    left, right = name(long + "left"), name(long + "right")
    assert left != right
    assert max(len(left), len(right)) <= 66


def test_a_wrong_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.mp5.*did you mean '\.mp4'|mp5"):
        save_video(smooth(), tmp_path, "mp5")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_video(smooth(), tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
