"""Where the laboratory's small networks lie: ordinary diffusers and transformers folders, shipped with the package."""

from __future__ import annotations

from pathlib import Path

ZOO = Path(__file__).parent / "networks"

CLIP, VIDEO_FEATURES, BACKBONE = "pocket-clip", "pocket-videomae", "pocket-dinov2"
# The ControlNet for poses of a teacher.
CONTROLNETS = {"pocket-animatediff": "pocket-openpose"}

# Base image models for a teacher, by the style whose look they have: LoRAs of its image UNet.
LOOKS = {"studio": "pocket-studio-look", "toon": "pocket-toon-look"}


def find(name: str) -> Path | None:
    """The folder of a network of the zoo, or None when the name is not one."""
    if not name.startswith("pocket-") or "/" in name:
        return None
    for folder in (ZOO / name, ZOO / "students" / name):
        if folder.is_dir():
            return folder
    return None


def teachers() -> list[str]:
    """Names of the zoo's teachers."""
    return sorted(p.parent.name for p in ZOO.glob("*/model_index.json"))


def students() -> list[str]:
    """Names of the students that are shipped."""
    return sorted(p.parent.name for p in (ZOO / "students").glob("*/card.json"))


def judge_file() -> Path:
    """The judge's weights."""
    return ZOO / "judge.safetensors"


def pose_file() -> Path:
    """The weights of the pose network."""
    return ZOO / "pose.safetensors"
