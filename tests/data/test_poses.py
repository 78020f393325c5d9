"""Poses: what is read from OpenPose's files, how a movement is stretched, and what skeletons look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mcm.data.open import open_pose
from mcm.data.poses import COLOURS, LIMBS, Poses, draw, of_coco, read_poses, write_poses
from mcm.errors import UserError
from mcm.pocket import world
from mcm.pocket.puppet import ACTIONS, KEYPOINTS

BODY_25 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye",
    "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel", "right_big_toe",
    "right_small_toe", "right_heel",
)  # fmt: skip


COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip


def movement(frames: int = 5, seed: int = 0) -> np.ndarray:
    """Points (frames, 18, 3) in fractions, all there."""
    points = np.random.default_rng(seed).uniform(0.1, 0.9, (frames, 18, 3))
    points[..., 2] = 0.9
    return points


def only(*places: tuple[int, float, float]) -> np.ndarray:
    """One frame (1, 18, 3) with these points (number, x, y)."""
    points = np.zeros((1, 18, 3))
    for number, x, y in places:
        points[0, number] = x, y, 1
    return points


def frame(numbers: Any, **more: Any) -> dict[str, Any]:
    return {"people": [{"pose_keypoints_2d": numbers}], **more}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", [(480, 640), None])
def test_written_and_read_again(tmp_path: Path, canvas: tuple[int, int] | None) -> None:
    points = movement()
    points[2, 4] = 0  # missing in one frame
    write_poses(tmp_path / "poses.json", Poses(points, canvas))
    back = read_poses(tmp_path / "poses.json")
    assert back.canvas == canvas
    np.testing.assert_allclose(back.points, points, atol=1e-12)
    first = json.loads((tmp_path / "poses.json").read_text())[0]
    assert first.get("canvas_width") == (640 if canvas else None)
    x, y = first["people"][0]["pose_keypoints_2d"][:2]
    assert (x, y) == pytest.approx(points[0, 0, :2] * ((640, 480) if canvas else 1))


def test_a_folder_with_a_file_a_frame_is_the_same(tmp_path: Path) -> None:
    poses = Poses(movement(12), (64, 64))
    for number, one in enumerate(poses.to_json()):
        write(tmp_path / f"film_{number:012d}_keypoints.json", one)
    np.testing.assert_allclose(read_poses(tmp_path).points, poses.points, atol=1e-12)
    assert torch.equal(open_pose(str(tmp_path), 12, (32, 32)), poses.pictures(12, (32, 32)))


def test_pixels_take_the_canvas_that_some_frame_states(tmp_path: Path) -> None:
    numbers = [320, 120, 0.5] * 18
    frames = [frame(numbers), frame(numbers, canvas_width=640, canvas_height=480)]
    found = read_poses(write(tmp_path / "a.json", frames))
    assert found.canvas == (480, 640)
    assert found.points[:, 3].tolist() == [[0.5, 0.25, 0.5]] * 2
    one = read_poses(write(tmp_path / "b.json", frame([0.5, 0.25, 1] * 18)))  # fractions, one frame, no canvas
    assert one.points.shape == (1, 18, 3)
    assert one.canvas is None


def test_the_25_points_of_body_25(tmp_path: Path) -> None:
    """Point k lies at x = k / 100, so that each can be told."""
    found = read_poses(write(tmp_path / "a.json", frame([n for k in range(25) for n in (k / 100, 0.5, 1)])))
    assert [BODY_25[round(100 * x)] for x in found.points[0, :, 0]] == list(KEYPOINTS)


def test_cocos_joints_as_openposes_points() -> None:
    joints = np.zeros((1, 17, 3))
    joints[0, :, 0], joints[0, :, 1], joints[0, :, 2] = np.arange(17), 7, 0.9
    joints[0, 9, 2] = 0.2  # the left wrist is not seen
    points = of_coco(joints)
    names = [COCO[round(x)] if seen else None for x, _, seen in points[0]]
    wanted: list[str | None] = list(KEYPOINTS)
    wanted[1], wanted[7] = COCO[round(5.5)], None  # the neck, between the shoulders; the wrist
    assert [name for k, name in enumerate(names) if k != 1] == [name for k, name in enumerate(wanted) if k != 1]
    assert points[0, 1].tolist() == [5.5, 7, 0.9]
    assert points[0, 7].tolist() == [0, 0, 0]
    joints[0, 5, 2] = 0.1  # a shoulder is not seen: no neck
    assert not of_coco(joints)[0, 1].any()


def test_dwposes_files_with_hands_and_faces(tmp_path: Path) -> None:
    """As the editors of ControlNet's world save it; the body alone is drawn."""
    body = [n for k in range(18) for n in (10.0 + k, 50.0, 1.0)]
    person = {
        "pose_keypoints_2d": body, "face_keypoints_2d": [1.0, 2.0, 1.0] * 70, "hand_left_keypoints_2d": None,
        "hand_right_keypoints_2d": [3.0, 4.0, 1.0] * 21,
    }  # fmt: skip
    content = [{"people": [person, person], "animals": [], "canvas_height": 100, "canvas_width": 200}]
    found = read_poses(write(tmp_path / "dwpose.json", content))
    assert found.canvas == (100, 200)
    np.testing.assert_allclose(found.points[0, :, 0], (10 + np.arange(18)) / 200)


@pytest.mark.parametrize("count", [17, 133])
def test_mmposes_files(count: int, tmp_path: Path) -> None:
    person = {"keypoints": [[20.0 + k, 50.0] for k in range(count)], "keypoint_scores": [0.9] * (count - 1) + [0.1]}
    frames = [{"frame_id": 1, "instances": [person, person]}, {"frame_id": 2, "instances": []}]
    stated = {"canvas_width": 400, "canvas_height": 100}
    found = read_poses(write(tmp_path / "a.json", {"meta_info": {}, "instance_info": frames, **stated}))
    assert (found.points.shape, found.canvas) == ((2, 18, 3), (100, 400))
    names = [COCO[round(400 * x) - 20] if seen and k != 1 else None for k, (x, _, seen) in enumerate(found.points[0])]
    wanted: list[str | None] = [name if k != 1 else None for k, name in enumerate(KEYPOINTS)]
    if count == 17:
        wanted[KEYPOINTS.index("right_ankle")] = None  # its score is low
    assert names == wanted
    assert not found.points[1].any()
    with pytest.raises(UserError, match=r"in pixels, and no frame states \"canvas_width\""):
        read_poses(write(tmp_path / "b.json", {"instance_info": frames}))
    for wrong, words in (
        ({"keypoints": person["keypoints"]}, 'no "keypoints" with as many "keypoint_scores"'),
        ({"keypoints": [[1, 2]] * 3, "keypoint_scores": [1] * 3}, r"has 3 points; expected COCO's 17, or 133"),
        ({"keypoints": [[1, "x"]] * 17, "keypoint_scores": [1] * 17}, r"something else than \[x, y\]"),
    ):
        with pytest.raises(UserError, match=words):
            read_poses(write(tmp_path / "c.json", {"instance_info": [{"instances": [wrong]}]}))


def test_missing_points_and_frames_without_people(tmp_path: Path) -> None:
    numbers = [100.0, 50.0, 1.0] * 18
    numbers[6:9] = [-1, -1, 0]
    frames = [frame(numbers, canvas_width=200, canvas_height=100), {"people": []}]
    found = read_poses(write(tmp_path / "a.json", frames))
    assert found.points[0, 2].tolist() == [0, 0, 0]
    assert (found.points[0, :, 2] > 0).sum() == 17
    assert not found.points[1].any()
    assert not found.pictures(2, (32, 32))[:, 1].any()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"a\.json: cannot be read as JSON"),
        (3, r"expected an object with \"people\", found a int"),
        ([frame([0.5] * 54), 7], r"frame 1: expected an object with \"people\", found a int"),
        ({"poeple": []}, r"no list \"people\".*did you mean 'poeple'"),
        ([{"people": [{"pose_keypoints": []}]}], r"frame 0: .*\"pose_keypoints_2d\"; did you mean 'pose_keypoints'"),
        ({"people": [5]}, r"first person has no list"),
        (frame([0.5] * 51), r"has 51 numbers; expected .*54 numbers.* 75 numbers"),
        (frame(["x", *[0.5] * 53]), r"something else than numbers"),
        (frame([float("nan"), *[0.5] * 53]), r"something else than numbers"),
        (frame([True, *[0.5] * 53]), r"something else than numbers"),
        (frame([0.0] * 54), r"none of its 1 frames has a point"),
        ([], r"none of its 0 frames"),
        (frame([90.0, 50.0, 1.0] * 18), r"in pixels, and no frame states \"canvas_width\".*--keypoint_scale 3"),
        (frame([90.0, 50.0, 1.0] * 18, canvas_width=100), r"are null and 100; expected pixels"),
        (frame([90.0, 50.0, 1.0] * 18, canvas_width=0, canvas_height=9), r"are 9 and 0; expected pixels"),
    ],
)  # fmt: skip
def test_wrong_files_are_one_line_that_says_where(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words) as error:
        open_pose(path, 4, (32, 32))
    assert str(error.value).startswith(f"pose {path}")
    assert "\n" not in str(error.value)


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pose walks: no such file, folder or action.*bow, jump.*did you mean 'walk'"):
        open_pose("walks", 4, (32, 32))
    with pytest.raises(UserError, match=r"neither \.json files nor pictures"):
        open_pose(tmp_path, 4, (32, 32))


@pytest.mark.parametrize("shape", [(0, 18, 3), (4, 17, 3), (4, 18, 2), (18, 3)])
def test_points_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"expected \(frames, 18, 3\)"):
        Poses(np.zeros(shape))


# In time and place ---------------------------------------------------------------------------------------------------


def test_resampling_goes_from_first_to_last_and_straight_between() -> None:
    poses = Poses(movement(5))
    assert np.array_equal(poses.resampled(5).points, poses.points)
    assert np.array_equal(poses.resampled(3).points, poses.points[[0, 2, 4]])
    assert np.array_equal(poses.resampled(1).points, poses.points[:1])
    longer = poses.resampled(9).points
    np.testing.assert_allclose(longer[::2], poses.points)
    np.testing.assert_allclose(longer[1::2, :, :2], (poses.points[:-1] + poses.points[1:])[..., :2] / 2)
    assert np.array_equal(Poses(poses.points[:1]).resampled(4).points, poses.points[:1].repeat(4, 0))  # a still


def test_a_point_that_one_neighbour_lacks_is_not_made_up() -> None:
    points = movement(3)
    points[1, 7] = 0
    seen = Poses(points).resampled(5).points[:, 7, 2] > 0
    assert seen.tolist() == [True, False, False, False, True]


def test_the_canvas_fills_the_frame_without_stretching() -> None:
    corner = only((0, 0.5, 0.5), (1, 0.25, 0.0), (2, 0.0, 0.5))
    wide = Poses(corner, (100, 200))
    assert wide.placed((50, 100))[0, :3, :2].tolist() == corner[0, :3, :2].tolist()  # the same shape
    assert wide.placed((64, 64))[0, :3, :2].tolist() == [[0.5, 0.5], [0.0, 0.0], [-0.5, 0.5]]  # its sides are cut off
    assert Poses(corner).placed((64, 32)) is corner


# Pictures ------------------------------------------------------------------------------------------------------------


def test_colours_are_openposes() -> None:
    known = {0: (255, 0, 0), 1: (255, 85, 0), 3: (255, 255, 0), 7: (0, 255, 85), 10: (0, 170, 255), 17: (255, 0, 85)}
    assert {i: COLOURS[i] for i in known} == known
    assert len(LIMBS) == 17
    # (limb, its dim colour): the right shoulder, the left shin, and the neck, whose points are coloured otherwise
    for (a, b), colour in (((1, 2), COLOURS[0]), ((12, 13), COLOURS[11]), ((1, 0), COLOURS[12])):
        picture = draw(only((a, 0.2, 0.5), (b, 0.8, 0.5)), (512, 512))[0]
        assert picture[256, 256].tolist() == [int(0.6 * c) for c in colour]
        assert picture[256, round(0.2 * 512)].tolist() == list(COLOURS[a])
        assert picture[256, round(0.8 * 512)].tolist() == list(COLOURS[b])


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (512, 512), (1024, 768)])
def test_points_stand_where_they_should(size: tuple[int, int]) -> None:
    points = only((0, 0.25, 0.75))
    picture = draw(points, size)[0].astype(float).sum(-1)
    y, x = (picture.sum(axis) @ (np.arange(n) + 0.5) / picture.sum() / n for axis, n in ((1, size[0]), (0, size[1])))
    assert (x, y) == pytest.approx((0.25, 0.75), abs=0.6 / min(size))
    # a dot of radius 4 in 512, whatever the size
    assert picture.sum() / 255 == pytest.approx(np.pi * (4 * min(size) / 512) ** 2, rel=0.2)


def test_what_is_missing_is_not_drawn() -> None:
    points = movement(1)
    points[..., 2] = 0
    assert not draw(points, (64, 64)).any()
    points[0, 3, 2] = 1  # an elbow alone: a point, and none of its two limbs
    drawn = draw(points, (512, 512))[0]
    assert {tuple(c) for c in drawn.reshape(-1, 3).tolist()} == {(0, 0, 0), COLOURS[3]}
    points[0, 3, :2] = 1e6, -1e6
    assert not draw(points, (512, 512)).any()


def test_pictures_are_between_zero_and_one_in_the_videos_order() -> None:
    pictures = Poses(movement(3)).pictures(3, (32, 48))
    assert pictures.shape == (3, 3, 32, 48)
    assert (float(pictures.min()), 0.3 < float(pictures.max()) <= 1) == (0, True)
    drawn = draw(movement(3), (32, 48))
    assert torch.equal(pictures[:, 2], torch.from_numpy(drawn[2]).permute(2, 0, 1).float() / 255)


def test_a_folder_of_skeleton_pictures(tmp_path: Path) -> None:
    drawn = draw(movement(4), (32, 32))
    for number, picture in enumerate(drawn):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("")
    whole = torch.from_numpy(drawn).permute(3, 0, 1, 2).float() / 255
    torch.testing.assert_close(open_pose(tmp_path, 4, (32, 32)), whole)
    torch.testing.assert_close(open_pose(tmp_path, 2, (32, 32)), whole[:, [0, 3]])
    assert open_pose(tmp_path, 9, (16, 32)).shape == (3, 9, 16, 32)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.png cannot be used: not a picture"):
        open_pose(tmp_path, 4, (32, 32))


# The laboratory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_actions_of_the_laboratory(name: str) -> None:
    pictures = open_pose(name, 8, (64, 64))
    assert torch.equal(pictures, open_pose(f"pocket:{name}", 8, (64, 64)))
    assert all(float(pictures[:, t].max()) > 0.3 for t in range(8))
    assert float((pictures[:, 0] - pictures[:, 2]).abs().max()) > 0.3  # it moves


def test_an_actions_points_are_the_renderers_own() -> None:
    from mcm.pocket.sources import action, poses_of

    specs = [world.spec("train", i) for i in range(3)]
    for poses, truth in zip(poses_of(specs, 8), world.stage(specs, 8), strict=True):
        np.testing.assert_array_equal(poses.points[..., :2], truth.numpy())
        assert (poses.points[..., 2] == 1).all()
    kick = action("kick", 8)
    assert kick is not None
    reach = np.abs(kick.points[:, 10, 0] - kick.points[:, 8, 0])  # the right foot from the right hip
    assert reach.argmax() == 4  # in the middle of the clip
    assert reach[4] > reach[0] + 0.2
    assert action("fly", 8) is None


def test_a_file_goes_before_an_action_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_poses(Path("walk"), Poses(movement(2)))
    assert torch.equal(open_pose("walk", 2, (32, 32)), Poses(movement(2)).pictures(2, (32, 32)))
