"""A request's pose, an action or uploaded files: as `generate` takes it, and drawn, so that its owner sees it."""

from __future__ import annotations

import base64
import html
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mcm.app.wanted import Upload
from mcm.data.encode import animation, as_pixels
from mcm.data.open import open_pose
from mcm.errors import UserError

_FRAMES, _SIDE, _FPS = 16, 160, 8.0  # of the drawing: small, and as long as the laboratory's videos


@contextmanager
def opened(action: str | None, uploads: Sequence[Upload]) -> Iterator[tuple[str | None, Callable[[str], str]]]:
    """What `generate` takes as pose, and how to take the machine's folders out of what it says about it."""
    if not uploads:
        yield action, lambda words: words
        return
    with TemporaryDirectory(prefix="mcm-pose-") as place:
        names = {}
        for number, upload in enumerate(uploads):  # numbered: their order is that of the owner's names
            copy = Path(place) / f"{number:04}{upload.path.suffix.lower()}"
            shutil.copyfile(upload.path, copy)
            names[copy.name] = upload.name
        first = next(iter(names))
        only = first if len(names) == 1 and first.endswith(".json") else None

        def clean(words: str) -> str:
            for own, name in names.items():
                words = words.replace(str(Path(place) / own), name).replace(own, name)
            return words.replace(place, "files")

        yield str(Path(place) / only) if only else place, clean


def drawn(action: str | None, uploads: Sequence[Upload]) -> str:
    """The pose as a looping picture of its skeleton, HTML; "" without a pose.

    Raises:
        UserError: for files that are no pose, with nothing of this machine's folders in the words.
    """
    with opened(action, uploads) as (pose, clean):
        if pose is None:
            return ""
        try:
            skeleton = open_pose(pose, _FRAMES, (_SIDE, _SIDE))
        except UserError as error:
            raise UserError(clean(str(error))) from error
    film = animation(as_pixels(skeleton * 2 - 1).numpy(), _FPS)
    name = html.escape(action or ", ".join(upload.name for upload in uploads[:3]))
    data = base64.b64encode(film).decode("ascii")
    return f'<img src="data:image/webp;base64,{data}" width="{_SIDE}" height="{_SIDE}" alt="skeleton: {name}">'
