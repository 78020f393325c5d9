"""The pose network: shapes, the arithmetic of its centres and of the error in pixels, its file, and how it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mcm.pocket import world
from mcm.pocket.pose import PoseNetwork, cells, centres, keypoint_error
from mcm.pocket.training import corpus, posing
from mcm.pocket.training.loop import Losses

FRAMES = 4


class Stub(nn.Module):
    """A network that finds every point of a frame at the place written in the frame's first two pixels."""

    def forward(self, frames: Tensor) -> Tensor:
        return frames[:, 0, 0, None, :2].expand(-1, 18, -1)


def frames(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_points_of_every_frame_by_itself() -> None:
    torch.manual_seed(0)
    network = PoseNetwork().eval()
    assert sum(p.numel() for p in network.parameters()) < 1_000_000
    with torch.no_grad():
        found, alone = network(frames()), network(frames()[1:2])
    assert found.shape == (3, 18, 2)
    assert ((found > 0) & (found < 1)).all()
    torch.testing.assert_close(alone[0], found[1], atol=1e-5, rtol=1e-4)


def test_centres_of_heat() -> None:
    heat = torch.full((1, 18, 16, 16), -50.0)
    heat[:, :, 3, 12] = 50  # row 3, column 12
    torch.testing.assert_close(centres(heat), torch.tensor([12.5 / 16, 3.5 / 16]).expand(1, 18, 2))
    heat[:, :, 3, 13] = 50  # between two cells
    torch.testing.assert_close(centres(heat)[..., 0], torch.full((1, 18), 13 / 16))
    torch.testing.assert_close(centres(torch.zeros(1, 18, 16, 16)), torch.full((1, 18, 2), 0.5))


def test_wanted_heat_has_its_centre_in_the_point() -> None:
    points = torch.rand(5, 18, 2, generator=torch.Generator().manual_seed(1)) * 0.7 + 0.15
    wanted = posing.places(points, 16)
    torch.testing.assert_close(wanted.sum((-1, -2)), torch.ones(5, 18))
    torch.testing.assert_close(centres(wanted.log()), points, atol=2e-3, rtol=0)
    assert cells(4).tolist() == [0.125, 0.375, 0.625, 0.875]


def test_the_error_is_the_mean_distance_in_pixels() -> None:
    videos, keypoints = torch.zeros(2, 3, FRAMES, 64, 64), torch.full((2, FRAMES, 18, 2), 0.5)
    videos[:, 0, :, 0, 0], videos[:, 0, :, 0, 1] = 0.5, 0.5
    assert keypoint_error(Stub(), videos, keypoints).tolist() == [0, 0]
    videos[1, 0, :, 0, 0] += 3 / 64
    videos[1, 0, :, 0, 1] -= 4 / 64
    torch.testing.assert_close(keypoint_error(Stub(), videos, keypoints, batch=3), torch.tensor([0.0, 5.0]))
    videos[1, 0, 1:] = videos[0, 0, 1:]  # one frame of four is off
    torch.testing.assert_close(keypoint_error(Stub(), videos, keypoints), torch.tensor([0.0, 1.25]))


def test_points_that_are_not_visible_do_not_count() -> None:
    videos = torch.zeros(1, 3, FRAMES, 64, 64)
    keypoints = torch.zeros(1, FRAMES, 18, 3)
    keypoints[..., 0] = 0.5  # half a side away, but
    keypoints[0, 2, 5] = torch.tensor([0.125, 0, 0.3])  # only this one is visible
    assert keypoint_error(Stub(), videos, keypoints).tolist() == [8.0]
    keypoints[..., 2] = 0
    with pytest.raises(ValueError, match="no visible point"):
        keypoint_error(Stub(), videos, keypoints)
    with pytest.raises(ValueError, match="keypoints"):
        keypoint_error(Stub(), videos, keypoints[:, :2])


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_says_the_same(tmp_path: Path, half: bool) -> None:
    torch.manual_seed(1)
    network = PoseNetwork().eval()
    state = {k: v.half() if half else v for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "pose.safetensors")
    back = PoseNetwork.load(tmp_path / "pose.safetensors")
    assert not back.training
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in back.parameters())
    with torch.no_grad():
        torch.testing.assert_close(back(frames()), network(frames()), atol=5e-3 if half else 0, rtol=0)


def test_it_learns_where_the_joints_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps on one batch: the stage's own losses, frames and points."""
    monkeypatch.setattr(corpus, "_CHUNK", 4)
    monkeypatch.setattr(posing, "COUNTS", dict.fromkeys(world.DOMAINS, 4))
    seen: list[float] = []

    def train(name: str, model: PoseNetwork, losses: Any, **settings: Any) -> dict[str, Tensor]:
        assert (name, settings["work"]) == ("pose", tmp_path)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(20):
            parts: Losses = losses(0, torch.Generator().manual_seed(0))
            seen.append(parts["pixels"].item())
            optimizer.zero_grad()
            torch.stack([*parts.values()]).sum().backward()
            optimizer.step()
        return model.state_dict()

    monkeypatch.setattr(posing, "train", train)
    network = posing.fit(tmp_path, steps=20, batch=8)
    assert not network.training
    assert seen[-1] < 0.75 * seen[0]
