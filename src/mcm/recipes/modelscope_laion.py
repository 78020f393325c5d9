"""ModelScopeT2V distilled with MCM: motion from WebVid, the look of the frames from LAION-aesthetic pictures.

Command: `mcm distill modelscope-laion`
Teacher: ali-vilab/text-to-video-ms-1.7b, from the hub or a folder of it (--teacher).
Data: WebVid-2M in data/webvid: films with their captions, or another folder (--videos); LAION-aesthetic pictures with
captions in data/laion-aesthetic (--images).
Cost: not measured here.
Expected score: FID of the frames to those pictures 82 / 69 / 73 / 76 at 1 / 2 / 4 / 8 steps (the paper;
110 / 119 / 115 / 122 where the frames are tuned after the distillation).
Settings: the official ones, see `_published`.
"""

from __future__ import annotations

from mcm.recipe import Recipe
from mcm.recipes._published import MODELSCOPE, published


def recipe() -> Recipe:
    """The recipe "modelscope-laion"."""
    return published("modelscope-laion", MODELSCOPE, images="./data/laion-aesthetic")
