"""Joints in frames: prepared and read as transformers' own processor does, the person found and followed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_poses import tiny_detector, tiny_vitpose

from mcm.errors import UserError
from mcm.models.keypoints import (
    JOINTS,
    PersonDetector,
    PoseNetwork,
    centre_and_extent,
    chosen_box,
    read_heatmaps,
)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> PoseNetwork:
    return PoseNetwork(tiny_vitpose(tmp_path_factory.mktemp("pose")))


@pytest.fixture(scope="module")
def processor(network: PoseNetwork) -> Any:
    pytest.importorskip("scipy")
    module = importlib.import_module("transformers.models.vitpose.image_processing_pil_vitpose")
    height, width = network.size
    return module.VitPoseImageProcessorPil(size={"height": height, "width": width})


def frame(height: int = 40, width: int = 50) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return coarse.repeat(height // 5, 0).repeat(width // 5, 1)


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize("box", [(10, 5, 30, 35), (0, 0, 49, 39), (-20, 10, 30, 60), (5, 20, 45, 30)])
def test_the_network_sees_what_transformers_shows_it(
    box: tuple[int, int, int, int], network: PoseNetwork, processor: Any
) -> None:
    left, top, right, bottom = box
    theirs = processor(frame(), boxes=[[[left, top, right - left, bottom - top]]], return_tensors="pt").pixel_values
    centre, extent = centre_and_extent(np.array(box, float), network.size)
    ours = network.crop(as_tensor(frame()), centre, extent)
    assert ours.shape == theirs.shape
    # Next to the frame's edge theirs are black, ours half so, as opencv's are, with which ViTPose was trained.
    x, y = (np.linspace(-0.5, 0.5, n) * e + c for n, e, c in zip(network.size[::-1], extent, centre, strict=True))
    clear = [(at <= -1) | ((at >= 0) & (at <= last)) | (at >= last + 1) for at, last in ((y, 39), (x, 49))]
    where = torch.from_numpy(clear[0][:, None] & clear[1]).expand_as(ours)
    assert where.float().mean() > 0.7
    # theirs are rounded to bytes on the way
    torch.testing.assert_close(ours[where], theirs.float()[where], atol=0.03, rtol=0)


def test_places_are_read_as_transformers_reads_them(network: PoseNetwork, processor: Any) -> None:
    from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

    height, width = (side // 4 for side in network.size)
    rows, columns = np.mgrid[:height, :width]
    middles = np.random.default_rng(1).uniform(0.5, 0.9 * width, (JOINTS, 2))
    maps = np.exp(-((columns - middles[:, :1, None]) ** 2 + (rows - middles[:, 1:, None]) ** 2) / 2).astype(np.float32)
    box = np.array([10.0, 5.0, 31.0, 36.0])
    said = VitPoseEstimatorOutput(heatmaps=torch.from_numpy(maps)[None])
    coco = [[[10.0, 5.0, 21.0, 31.0]]]
    (theirs,) = processor.post_process_pose_estimation(said, boxes=coco)[0]
    ours = read_heatmaps(maps, *centre_and_extent(box, network.size))
    np.testing.assert_allclose(ours[:, :2], theirs["keypoints"].numpy(), atol=1e-2)
    np.testing.assert_allclose(ours[:, 2], theirs["scores"].numpy().reshape(-1), atol=1e-5)


def test_frames_without_a_person_have_no_joints(network: PoseNetwork) -> None:
    frames = torch.stack([as_tensor(frame())] * 3)
    boxes = np.array([[0, 0, 40, 39], [np.nan] * 4, [0, 0, 40, 39]], float)
    joints = network(frames, boxes, batch=1)
    assert joints.shape == (3, JOINTS, 3)
    assert not joints[1].any()
    np.testing.assert_allclose(joints[0], joints[2], atol=1e-5)
    np.testing.assert_allclose(network(frames, boxes)[0], joints[0], atol=1e-2)  # whatever the batch


def test_the_largest_person_is_followed() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 60, 60], [21, 19, 61, 58], [0, 0, 90, 90]], float)
    scores = np.array([0.9, 0.8, 0.5, 0.1])
    assert chosen_box(boxes, scores, None).tolist() == [20, 20, 60, 60]
    assert chosen_box(boxes, scores, np.array([1.0, 1, 11, 11])).tolist() == [0, 0, 10, 10]
    assert chosen_box(boxes, scores, np.array([21.0, 19, 61, 58])).tolist() == [21, 19, 61, 58]
    assert chosen_box(boxes, scores, np.array([200.0, 200, 210, 210])).tolist() == [0, 0, 10, 10]
    assert np.isnan(chosen_box(boxes, scores / 10, None)).all()


def test_the_detectors_boxes_are_in_pixels(tmp_path: Path) -> None:
    detector = PersonDetector(tiny_detector(tmp_path / "detector"))
    assert detector.size == (64, 64)
    frames = torch.stack([as_tensor(frame())] * 2)
    with torch.no_grad():
        pixels = torch.nn.functional.interpolate((frames + 1) / 2, (64, 64), mode="bilinear", antialias=True)
        said = detector.network(pixel_values=pixels)
    scores = said.logits[..., detector.person].sigmoid()
    boxes = detector(frames)
    assert boxes.shape == (2, 4)
    if bool((scores >= 0.3).any()):
        x, y, w, h = (said.pred_boxes[0] * torch.tensor([50.0, 40, 50, 40])).unbind(-1)
        known = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).numpy()
        assert np.abs(known - boxes[0]).max(1).min() < 1e-2
    else:
        assert np.isnan(boxes).all()


def test_other_networks_are_refused(tmp_path: Path) -> None:
    pose, detector = tiny_vitpose(tmp_path / "pose"), tiny_detector(tmp_path / "detector", {0: "cat", 1: "dog"})
    with pytest.raises(UserError, match=r"the pose network .* is of type 'rt_detr'; expected vitpose"):
        PoseNetwork(detector)
    with pytest.raises(UserError, match=r"the person detector .* is of type 'vitpose'; expected rt_detr or"):
        PersonDetector(pose)
    with pytest.raises(UserError, match="knows no class 'person'"):
        PersonDetector(detector)
    with pytest.raises(UserError, match="knows 5 joints; expected COCO's 17"):
        PoseNetwork(tiny_vitpose(tmp_path / "five", joints=5))
