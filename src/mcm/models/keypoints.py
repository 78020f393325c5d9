"""Where a person's joints are in frames: a ViTPose (arXiv 2204.12484) looking at a box that a detector found.

Both are transformers' networks, by folder or hub id. Their pixels are prepared and their answers read here, with
tensors and opencv, as transformers' image processors do (those want torchvision). Frames are (N, 3, H, W) in [-1, 1],
places pixels of them, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mcm.errors import UserError
from mcm.models.folders import find_folder, load_network, read_json

POSE_NETWORK = "usyd-community/vitpose-base-simple"
PERSON_DETECTOR = "PekingU/rtdetr_r50vd_coco_o365"
WHOLE_FRAME = "none"  # in the place of a detector: one person fills the film
JOINTS = 17  # COCO's: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; of each pair the left one first
SEEN = 0.3  # a person with a score below it is none
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MARGIN = 1.25  # of the box, as ViTPose was trained
_BLUR, _SIGMA = 11, 0.8  # of its heatmaps before they are refined


class PersonDetector:
    """The box of the person who fills most of the first frame with one, followed through the others.

    name: a folder or hub id of transformers' RT-DETR or D-FINE with a class "person". UserError for others.
    """

    def __init__(self, name: str | Path = PERSON_DETECTOR, device: torch.device | str = "cpu") -> None:
        from transformers import DFineForObjectDetection, RTDetrForObjectDetection, RTDetrV2ForObjectDetection

        kinds: dict[str, Any] = {
            "rt_detr": RTDetrForObjectDetection, "rt_detr_v2": RTDetrV2ForObjectDetection,
            "d_fine": DFineForObjectDetection,
        }  # fmt: skip
        folder, config = _network(name, "the person detector", kinds)
        self.network = load_network(kinds[config["model_type"]], folder).to(device)
        labels = {str(label).lower(): int(number) for number, label in self.network.config.id2label.items()}
        if "person" not in labels:
            raise UserError(f"the person detector {name}: knows no class 'person' (id2label in its config.json)")
        self.person, self.device = labels["person"], torch.device(device)
        path = folder / "preprocessor_config.json"
        size = (read_json(path, f"the person detector {name}") if path.is_file() else {}).get("size") or {}
        self.size = (int(size.get("height", 640)), int(size.get("width", 640)))

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> np.ndarray:
        """-> boxes (N, 4), left, top, right, bottom; NaN where nobody is."""
        height, width = frames.shape[-2:]
        found: list[np.ndarray] = []
        last: np.ndarray | None = None
        for frame in frames:
            pixels = F.interpolate(frame[None].to(self.device), self.size, mode="bilinear", antialias=True)
            said = self.network(pixel_values=(pixels + 1) / 2)
            scores = said.logits[0, :, self.person].sigmoid().cpu().numpy()
            middle, extent = said.pred_boxes[0].cpu().numpy().reshape(-1, 2, 2).transpose(1, 0, 2)
            boxes = np.concatenate([middle - extent / 2, middle + extent / 2], 1) * [width, height, width, height]
            found.append(chosen_box(boxes, scores, last))
            last = found[-1] if np.isfinite(found[-1]).all() else last
        return np.stack(found)


def chosen_box(boxes: np.ndarray, scores: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """Of boxes (Q, 4) with scores (Q,) the one that overlaps most with the `last` one, without one the largest; (4,),
    NaN where no score is high enough."""
    sure = scores >= SEEN
    if not sure.any():
        return np.full(4, np.nan)
    boxes = boxes[sure]
    area = _area(boxes)
    if last is None:
        return boxes[int(area.argmax())]
    both = _area(np.concatenate([np.maximum(boxes[:, :2], last[:2]), np.minimum(boxes[:, 2:], last[2:])], 1))
    overlap = both / (area + _area(last[None]) - both).clip(1e-6)
    return boxes[int((overlap + 1e-6 * scores[sure]).argmax())]  # where none overlaps: the surest


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)


class PoseNetwork:
    """COCO's 17 joints of the person in a box, by transformers' VitPoseForPoseEstimation.

    name: a folder or hub id. UserError for another network, or one with other joints.
    """

    def __init__(self, name: str | Path = POSE_NETWORK, device: torch.device | str = "cpu") -> None:
        from transformers import VitPoseForPoseEstimation

        folder, _ = _network(name, "the pose network", {"vitpose": VitPoseForPoseEstimation})
        self.network: Any = load_network(VitPoseForPoseEstimation, folder).to(device)
        config = self.network.config
        if config.num_labels != JOINTS:
            raise UserError(f"the pose network {name}: knows {config.num_labels} joints; expected COCO's {JOINTS}")
        self.experts = int(getattr(config.backbone_config, "num_experts", 1) or 1)
        self.size: tuple[int, int] = tuple(config.backbone_config.image_size)
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, frames: Tensor, boxes: np.ndarray, batch: int = 8) -> np.ndarray:
        """boxes (N, 4) as `PersonDetector` gives them -> joints (N, 17, 3): x, y, score; all 0 where the box is NaN."""
        joints = np.zeros((len(frames), JOINTS, 3))
        there = np.flatnonzero(np.isfinite(boxes).all(1))
        for start in range(0, len(there), batch):
            part = there[start : start + batch]
            places = [centre_and_extent(boxes[i], self.size) for i in part]
            crops = torch.cat([self.crop(frames[i], *place) for i, place in zip(part, places, strict=True)])
            # of several experts the first was trained on COCO
            which = {"dataset_index": torch.zeros(len(part), dtype=torch.long)} if self.experts > 1 else {}
            maps = self.network(crops.to(self.device), **which).heatmaps.cpu().numpy()
            for i, place, heatmaps in zip(part, places, maps, strict=True):
                joints[i] = read_heatmaps(heatmaps, *place)
        return joints

    def crop(self, frame: Tensor, centre: np.ndarray, extent: np.ndarray) -> Tensor:
        """What the network sees, (1, 3, h, w): the frame (3, H, W) around `centre`, black where it ends, normalised.

        Corner pixels lie on the corners of the box ("unbiased data processing", arXiv 1911.07524).
        """
        height, width = frame.shape[-2:]
        rows, columns = (torch.linspace(-0.5, 0.5, side) for side in self.size)
        y, x = rows * extent[1] + centre[1], columns * extent[0] + centre[0]
        grid = torch.stack(torch.meshgrid(2 * y / (height - 1) - 1, 2 * x / (width - 1) - 1, indexing="ij")[::-1], -1)
        seen = F.grid_sample((frame[None].float().cpu() + 1) / 2, grid[None].float(), align_corners=True)
        return (seen - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


def centre_and_extent(box: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Middle and (width, height) of what the network is shown of a box: its shape made the network's, with a margin."""
    extent = box[2:] - box[:2]
    ratio = size[1] / size[0]
    extent = np.maximum(extent, [extent[1] * ratio, extent[0] / ratio])
    return (box[:2] + box[2:]) / 2, extent * _MARGIN


def read_heatmaps(heatmaps: np.ndarray, centre: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Heatmaps (K, h, w) of what lies around `centre` -> (K, 3): x, y, and the highest value.

    The maximum is refined by the Taylor series of the blurred map's logarithm (DARK, arXiv 1910.06278).
    """
    count, height, width = heatmaps.shape
    best = heatmaps.reshape(count, -1).argmax(1)
    y, x = best // width, best % width
    scores = heatmaps[np.arange(count), y, x]
    blurred = [cv2.GaussianBlur(m, (_BLUR, _BLUR), _SIGMA, borderType=cv2.BORDER_REFLECT) for m in heatmaps]
    logs = np.pad(np.log(np.clip(np.stack(blurred), 1e-3, 50.0).astype(float)), ((0, 0), (1, 1), (1, 1)), mode="edge")

    def at(right: int, down: int) -> np.ndarray:
        return logs[np.arange(count), y + 1 + down, x + 1 + right]

    here = at(0, 0)
    slope = np.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], -1) / 2
    xx, yy = at(1, 0) - 2 * here + at(-1, 0), at(0, 1) - 2 * here + at(0, -1)
    xy = (at(1, 1) + at(-1, -1) + 2 * here - at(1, 0) - at(0, 1) - at(-1, 0) - at(0, -1)) / 2
    curve = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2) + np.finfo(np.float32).eps * np.eye(2)
    moved = np.stack([x, y], -1) - np.linalg.solve(curve, slope[..., None])[..., 0]
    places = (moved / [width - 1, height - 1] - 0.5) * extent + centre
    return np.concatenate([places, scores[:, None]], 1)


def _network(name: str | Path, what: str, kinds: Sequence[str] | dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    folder = find_folder(name, what)
    config = read_json(folder / "config.json", f"{what} {name}")
    if config.get("model_type") not in kinds:
        raise UserError(f"{what} {name}: is of type {config.get('model_type')!r}; expected {' or '.join(kinds)}")
    return folder, config
