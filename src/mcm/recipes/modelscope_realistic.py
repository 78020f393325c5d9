"""ModelScopeT2V distilled with MCM: motion from WebVid, the look of the frames from realistic pictures.

Command: `mcm distill modelscope-realistic`
Teacher: ali-vilab/text-to-video-ms-1.7b, from the hub or a folder of it (--teacher).
Data: WebVid-2M in data/webvid: films with their captions, or another folder (--videos); realistic pictures with
captions in data/realistic (--images).
Cost: not measured here.
Expected score: none is known: the poster measures frame quality on LAION-aesthetic and anime alone.
Settings: the official ones, see `_published`.
"""

from __future__ import annotations

from mcm.recipe import Recipe
from mcm.recipes._published import MODELSCOPE, published


def recipe() -> Recipe:
    """The recipe "modelscope-realistic"."""
    return published("modelscope-realistic", MODELSCOPE, images="./data/realistic")
