"""AnimateDiff distilled with MCM on WebVid: its motion in 1 to 8 steps, the frames as the videos have them.

Command: `mcm distill animatediff-webvid`
Teacher: Stable Diffusion 1.5 with the motion adapter v1-5-2, each from the hub, or folders of them: `--teacher
"BASE+ADAPTER"` for any other two, `--teacher FOLDER` for a whole pipeline. (The adapter was trained with linear betas;
Stable Diffusion's own scheduler states others, which are not used.)
Data: WebVid-2M in data/webvid: films with their captions, or another folder (--videos).
Cost: not measured here.
Expected score: FVD 1197 / 1036 / 801 / 675 and CLIPSIM 28.95 / 29.40 / 29.64 / 29.13 on MSR-VTT at 1 / 2 / 4 / 8
steps (the paper).
Settings: the official ones, see `_published`.
"""

from __future__ import annotations

from mcm.recipe import Recipe
from mcm.recipes._published import ANIMATEDIFF, published


def recipe() -> Recipe:
    """The recipe "animatediff-webvid"."""
    return published("animatediff-webvid", ANIMATEDIFF)
