"""ModelScopeT2V distilled with MCM: motion from WebVid, the look of the frames from anime pictures.

Command: `mcm distill modelscope-anime`
Teacher: ali-vilab/text-to-video-ms-1.7b, from the hub or a folder of it (--teacher).
Data: WebVid-2M in data/webvid: films with their captions, or another folder (--videos); anime pictures with captions
in data/anime (--images).
Cost: not measured here.
Expected score: FID of the frames to those pictures 78 / 71 / 67 / 69 at 1 / 2 / 4 / 8 steps (the paper;
160 / 159 / 149 / 150 where the frames are tuned after the distillation).
Settings: the official ones, see `_published`.
"""

from __future__ import annotations

from mcm.recipe import Recipe
from mcm.recipes._published import MODELSCOPE, published


def recipe() -> Recipe:
    """The recipe "modelscope-anime"."""
    return published("modelscope-anime", MODELSCOPE, images="./data/anime")
