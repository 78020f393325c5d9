"""ModelScopeT2V distilled with MCM: motion from WebVid, the look of the frames from 3-D cartoon pictures.

Command: `mcm distill modelscope-3d-cartoon`
Teacher: ali-vilab/text-to-video-ms-1.7b, from the hub or a folder of it (--teacher).
Data: WebVid-2M in data/webvid: films with their captions, or another folder (--videos); 3-D cartoon pictures with
captions in data/3d-cartoon (--images).
Cost: not measured here.
Expected score: none is known: the poster measures frame quality on LAION-aesthetic and anime alone.
Settings: the official ones, see `_published`.
"""

from __future__ import annotations

from mcm.recipe import Recipe
from mcm.recipes._published import MODELSCOPE, published


def recipe() -> Recipe:
    """The recipe "modelscope-3d-cartoon"."""
    return published("modelscope-3d-cartoon", MODELSCOPE, images="./data/3d-cartoon")
