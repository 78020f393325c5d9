"""ModelScopeT2V distilled with MCM on WebVid: its motion in 1 to 8 steps, the frames as the videos have them.

Command: `mcm distill modelscope-webvid`
Teacher: ali-vilab/text-to-video-ms-1.7b, from the hub or a folder of it (--teacher).
Data: WebVid-2M in data/webvid: films with their captions, or another folder (--videos).
Cost: not measured here.
Expected score: FVD 501 / 434 / 414 / 482 and CLIPSIM 28.37 / 29.02 / 28.86 / 28.28 on MSR-VTT at 1 / 2 / 4 / 8
steps (the paper).
Settings: the official ones, see `_published`.
"""

from __future__ import annotations

from mcm.recipe import Recipe
from mcm.recipes._published import MODELSCOPE, published


def recipe() -> Recipe:
    """The recipe "modelscope-webvid"."""
    return published("modelscope-webvid", MODELSCOPE)
