"""AnimateDiff distilled with MCM on WebVid: its motion in 1 to 8 steps, the frames as the videos have them.

Command: `mcm distill animatediff-webvid`
Teacher: Stable Diffusion 1.5 with the motion adapter v1-5-2, as one folder, made once with diffusers:

    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
    base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    pipeline = AnimateDiffPipeline.from_pretrained(
        base,
        motion_adapter=MotionAdapter.from_pretrained("guoyww/animatediff-motion-adapter-v1-5-2"),
        scheduler=DDIMScheduler.from_pretrained(
            base, subfolder="scheduler", beta_schedule="linear", timestep_spacing="linspace", clip_sample=False
        ),
    )
    pipeline.save_pretrained("teachers/animatediff")

(The adapter was trained with linear betas; Stable Diffusion's own scheduler states others.)
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
