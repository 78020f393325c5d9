"""Poses from a driving video: where they are, over how many frames, and the video that follows them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_animatediff, tiny_controlnet
from tiny_poses import tiny_detector, tiny_vitpose

from mcm.cli import main
from mcm.data.video import write_video
from mcm.driving import is_film, poses_of_film
from mcm.errors import UserError
from mcm.generate import generate
from mcm.models import keypoints

FRAMES = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """film.mp4, in which a bright spot goes from the left to the right; pose/, detector/, controlnet/, animatediff/."""
    place = tmp_path_factory.mktemp("driving")
    film = np.zeros((FRAMES, 96, 128, 3), np.uint8)
    for k in range(FRAMES):
        film[k, 44:52, 20 + 8 * k - 4 : 20 + 8 * k + 4] = 255
    write_video(place / "film.mp4", film, 8)
    tiny_vitpose(place / "pose")
    tiny_detector(place / "detector")
    tiny_controlnet(place / "controlnet", seed=2)
    tiny_animatediff(place / "animatediff")
    return place


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network for which all joints are where the crop is brightest."""

    class Bright:
        config = SimpleNamespace(num_labels=17, backbone_config=SimpleNamespace(image_size=[128, 96]))

        def to(self, device: Any) -> Bright:
            return self

        def __call__(self, crops: torch.Tensor) -> SimpleNamespace:
            maps = torch.nn.functional.adaptive_avg_pool2d(crops.mean(1, keepdim=True), (32, 24))
            low = maps.amin((2, 3), keepdim=True)
            maps = (maps - low) / (maps.amax((2, 3), keepdim=True) - low).clamp(min=1e-6)
            return SimpleNamespace(heatmaps=maps.expand(-1, 17, -1, -1))

    load = keypoints.load_network
    monkeypatch.setattr(
        keypoints, "load_network",
        lambda kind, folder, *more: Bright() if kind.__name__.startswith("VitPose") else load(kind, folder, *more),
    )  # fmt: skip


@pytest.mark.parametrize("frames", [12, 4, 1, 20])
def test_points_are_where_the_film_has_them(frames: int, bright: None, place: Path) -> None:
    poses = poses_of_film(place / "film.mp4", frames, place / "pose", "none")
    assert (poses.points.shape, poses.canvas) == ((frames, 18, 3), (96, 128))
    shown = np.linspace(0, FRAMES - 1, frames) if frames > 1 else np.zeros(1)
    wanted = (20 + 8 * np.floor(shown + 1e-6)) / 128
    assert np.abs(poses.points[:, 0, 0] - wanted).max() < 0.06  # a heatmap's cell is a 24th of what is shown
    assert np.abs(poses.points[:, 0, 1] - 0.5).max() < 0.06
    assert (poses.points[..., 2] > 0.3).all()


def test_a_film_that_is_turned_is_seen_upright(bright: None, place: Path, tmp_path: Path) -> None:
    film = np.zeros((4, 128, 64, 3), np.uint8)
    film[:, 100:108, 28:36] = 255
    write_video(tmp_path / "tall.mp4", film, 8)
    poses = poses_of_film(tmp_path / "tall.mp4", 4, place / "pose", "none")
    assert poses.canvas == (128, 64)
    assert np.abs(poses.points[:, 0, :2] - [0.5, 104 / 128]).max() < 0.06


def test_the_person_is_found_first(bright: None, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the detector shows is looked at: here the right half, where the spot is at the end."""

    def right_half(self: Any, frames: torch.Tensor) -> np.ndarray:
        boxes = np.tile(np.array([64.0, 30.0, 120.0, 66.0]), (len(frames), 1))
        boxes[:6] = np.nan  # nobody before
        return boxes

    monkeypatch.setattr(keypoints.PersonDetector, "__call__", right_half)
    poses = poses_of_film(place / "film.mp4", FRAMES, place / "pose", place / "detector")
    assert not poses.points[:6].any()
    assert np.abs(poses.points[8:, 0, 0] - (20 + 8 * np.arange(8, FRAMES)) / 128).max() < 0.06


def test_what_cannot_drive(place: Path, tmp_path: Path, bright: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        keypoints.PersonDetector, "__call__", lambda self, frames: np.full((len(frames), 4), np.nan)
    )
    with pytest.raises(UserError, match=r"film\.mp4: nobody is seen in its 4 frames"):
        poses_of_film(place / "film.mp4", 4, place / "pose", place / "detector")
    (tmp_path / "broken.mp4").write_bytes(b"no film at all, but bytes" * 9)
    with pytest.raises(UserError, match=r"broken\.mp4: cannot be used as a driving video"):
        poses_of_film(tmp_path / "broken.mp4", 4, place / "pose", "none")
    with pytest.raises(UserError, match=r"the pose network .*nowhere: no such folder"):
        poses_of_film(place / "film.mp4", 4, place / "nowhere", "none")
    assert is_film(place / "film.mp4")
    assert not is_film(place / "nowhere.mp4")
    assert not is_film("walk")


def test_a_missing_network_says_what_to_download(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(name: str, **settings: Any) -> str:
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"the pose network usyd-community/.*`hf download usyd-community/vitpose"):
        poses_of_film(place / "film.mp4", 4)
    with pytest.raises(UserError, match=r"the person detector PekingU/.*`hf download PekingU/rtdetr"):
        poses_of_film(place / "film.mp4", 4, place / "pose")


def test_a_video_follows_a_film(
    bright: None, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain: dict[str, Any] = {"steps": 2, "frames": 4, "controlnet": place / "controlnet"}
    how = {**plain, "pose_detector": "none", "pose_network": place / "pose"}
    poses = poses_of_film(place / "film.mp4", 4, place / "pose", "none")
    (wanted,) = generate(place / "animatediff", "a puppet", **{**plain, "pose": poses})
    (found,) = generate(place / "animatediff", "a puppet", **{**how, "pose": place / "film.mp4"})
    assert np.array_equal(found.frames, wanted.frames)
    assert found.settings["pose"] == str(place / "film.mp4")
    assert found.settings["pose_detector"] == "none"
    for other, named in (("walk", "walk"), (poses, "of keypoints")):
        with pytest.raises(UserError, match=f"pose {named}: is no film"):
            generate(place / "animatediff", "a puppet", **{**how, "pose": other})
    monkeypatch.chdir(tmp_path)
    command = [
        "generate", str(place / "animatediff"), "--prompt", "a puppet", "--steps", "2", "--frames", "4", "--json",
        "--controlnet", str(place / "controlnet"), "--pose-network", str(place / "pose"), "--pose-detector", "none",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--pose", str(place / "film.mp4")])
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    assert video["pose_network"] == str(place / "pose")
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--pose", "walk"])
    assert "read poses from a film" in capsys.readouterr().err
