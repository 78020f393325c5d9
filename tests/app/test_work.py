"""What makes the page's videos: several students beside their teacher, a look after every step, poses to look at."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_controlnet
from tiny_students import tiny_student, whole_teacher

from mcm.app.posing import drawn
from mcm.app.systems import Systems, load_systems
from mcm.app.wanted import Upload, Wanted
from mcm.app.work import Film, Look, Workshop
from mcm.data.poses import draw, write_poses
from mcm.errors import UserError
from mcm.pocket.sources import action


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students of one teacher."""
    folder = tmp_path_factory.mktemp("work")
    whole_teacher(folder / "teacher", "animatediff")
    for name in ("one", "two"):
        tiny_student(folder / name / "student", folder / "teacher")
    tiny_controlnet(folder / "controlnet")
    return folder


@pytest.fixture(scope="module")
def systems(place: Path) -> Systems:
    return load_systems([str(place / "one"), str(place / "two" / "student")])


def test_students_and_their_teacher_once(systems: Systems) -> None:
    assert list(systems) == ["one", "teacher", "two"]
    assert systems.teachers == ["teacher"]
    assert systems.first == ["one", "teacher"]


def test_every_system_has_a_look_after_each_step_and_its_time(systems: Systems, tmp_path: Path) -> None:
    wanted = Wanted("a red puppet", ("one", "two", "teacher"), 2, 3, 7, None, None, None, ())
    news = list(Workshop(systems).run(wanted, tmp_path))
    looks = [(look.system, look.done, look.steps) for look in news if isinstance(look, Look)]
    assert looks == [
        ("one", 1, 2), ("one", 2, 2), ("two", 1, 2), ("two", 2, 2),
        ("teacher", 1, 3), ("teacher", 2, 3), ("teacher", 3, 3),
    ]  # fmt: skip
    for look in news:
        if isinstance(look, Look):
            assert (look.frames.dtype, look.frames.shape[-1], len(look.frames)) == (np.uint8, 3, 4)
    films = [film for film in news if isinstance(film, Film)]
    assert [film.system for film in films] == ["one", "two", "teacher"]
    assert all(film.seconds > 0 for film in films)
    assert Counter(film.settings["seed"] for film in films) == {7: 3}
    assert [film.settings["steps"] for film in films] == [2, 2, 3]
    for film in films:
        assert film.mp4.read_bytes()[4:8] == b"ftyp"
        assert film.gif.read_bytes()[:4] == b"GIF8"


def shown(page: str) -> list[np.ndarray]:
    """The frames of the picture in a piece of HTML."""
    data = page.partition("base64,")[2].partition('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as film:
        frames = []
        for k in range(film.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            film.seek(k)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
    return frames


def test_a_pose_is_drawn_as_what_it_is(tmp_path: Path) -> None:
    poses = action("kick", 16)
    assert poses is not None
    frames = shown(drawn("kick", ()))
    wanted = draw(poses.placed((160, 160)), (160, 160)).astype(int)
    assert len(frames) == 16
    assert np.abs(np.stack(frames) - wanted).mean() < 2  # WebP loses a little
    assert np.abs(frames[0] - frames[8]).mean() > 1  # it moves
    write_poses(tmp_path / "a", poses)
    (tmp_path / "a").rename(tmp_path / "a.json")
    page = drawn(None, (Upload(tmp_path / "a.json", '<b>"mine".json'),))
    assert 'alt="skeleton: &lt;b&gt;&quot;mine&quot;.json"' in page
    np.testing.assert_allclose(np.stack(shown(page)), np.stack(frames), atol=60)
    assert drawn(None, ()) == ""


def test_what_is_no_pose_is_told_by_its_owners_name(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(UserError, match=r"^pose mine\.json: cannot be read as JSON") as told:
        drawn(None, (Upload(tmp_path / "x.json", "mine.json"),))
    assert str(tmp_path) not in str(told.value)
