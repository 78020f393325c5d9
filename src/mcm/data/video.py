"""Films: look at a file (`probe`), read a clip of it by timestamps (`read_clip`), write one (`write_video`).

Decoding is PyAV's. A file that cannot be used, for whatever reason, is one exception: `UnreadableVideo`,
whose reason a person understands. Clips are float (3, T, H, W) in [-1, 1]; written films are uint8 (T, H, W,
3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcm.data.encode import as_pixels, write_video
from mcm.data.files import File, as_file
from mcm.data.film import MAX_SIDE, Film, UnreadableVideo, VideoInfo
from mcm.data.resize import crop_place
from mcm.data.sheets import compare_gif, contact_sheet

__all__ = [
    "MAX_SIDE",
    "UnreadableVideo",
    "VideoInfo",
    "as_pixels",
    "compare_gif",
    "contact_sheet",
    "probe",
    "read_clip",
    "write_video",
]


def probe(path: str | File, count: bool = False) -> VideoInfo:
    """Look at a film without decoding it.

    The header is believed unless it is silent or `count` is set; then the packets are walked, which reads the
    whole file. Raises `UnreadableVideo`.
    """
    with Film(as_file(path), count) as film:
        return film.info


def read_clip(
    path: str | File,
    frames: int,
    size: tuple[int, int],
    *,
    stride: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    at: float | None = None,
    crop: str = "center",
    rng: torch.Generator | None = None,
) -> Tensor:
    """Read `frames` frames of a film by their timestamps.

    Frame k is the nearest one at or before  start + k stride / native fps  (`stride`; 1 where nothing is
    given), or start + k / fps  (`fps`; a film slower than that repeats frames). Where the clip starts:
    `start` in seconds from the film's first frame, or `at`, a fraction of the room there is: 0 the beginning
    (the default), 1 as late as the clip fits. With `at`, a header that promises too much is corrected by what
    really decodes.

    size: (H, W) of the result; the film is cut to that shape (`crop`: "center", or "random" drawn from `rng`)
    and scaled with antialiasing. Only the frames from the keyframe before the clip on are decoded, and one at
    a time is held at the film's own size.

    Returns float32 (3, T, H, W) in [-1, 1]. Raises `UnreadableVideo` (damaged, too short, no video ...).
    """
    if frames < 1 or min(size) < 1:
        raise ValueError(f"frames is {frames} and size {size}: both must be positive")
    if start is not None and at is not None:
        raise ValueError("give start (seconds) or at (a fraction), not both")
    if (start is not None and not 0 <= start < 1e9) or (at is not None and not 0 <= at <= 1):
        raise ValueError(f"start is {start}, at is {at}: start must be >= 0 seconds and at within 0..1")
    place = crop_place(crop, rng)
    with Film(as_file(path)) as film:
        if at and film.info.why_too_short(frames, stride, fps):
            film.recount()  # a header that promises too little must not pin every clip to the beginning
        step, needed = film.info.step(stride, fps), film.info.clip_seconds(frames, stride, fps)
        begin = start if start is not None else (at or 0.0) * max(0.0, film.info.seconds - needed)
        healthy, why = 0.0, None
        for attempt in range(8):
            clip, healthy, why = film.collect([begin + k * step for k in range(frames)], size, place)
            if clip is not None:
                return clip
            if start is not None or begin == 0:
                break
            # the film really ends, or breaks, at `healthy`: fit the clip in before that, at last at the start
            begin = (at or 0.0) * max(0.0, healthy - needed) if attempt < 6 else 0.0
        if why is None and healthy == 0:
            raise UnreadableVideo("no frame can be decoded")
        short = film.info.too_short(max(0.0, healthy - (start or 0.0)), frames, stride, fps)
        if why is not None:
            raise UnreadableVideo(f"damaged: decoding stops at {healthy:.1f} s ({why}); {short}")
        raise UnreadableVideo(f"{short}, counted from {start:g} s on" if start else short)
