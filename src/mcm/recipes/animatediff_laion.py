"""AnimateDiff distilled with MCM: motion from WebVid, the look of the frames from LAION-aesthetic pictures.

Command: `mcm distill animatediff-laion`
Teacher: as animatediff-webvid tells.
Data: WebVid-2M in data/webvid: films with their captions, or another folder (--videos); LAION-aesthetic pictures with
captions in data/laion-aesthetic (--images).
Cost: not measured here.
Expected score: none is known: the poster measures frame quality on ModelScopeT2V alone.
Settings: the official ones, see `_published`.
"""

from __future__ import annotations

from mcm.recipe import Recipe
from mcm.recipes._published import ANIMATEDIFF, published


def recipe() -> Recipe:
    """The recipe "animatediff-laion"."""
    return published("animatediff-laion", ANIMATEDIFF, images="./data/laion-aesthetic")
