"""I3D, the network of published FVDs, from the TorchScript file that StyleGAN-V (arXiv 2112.14683) measures with.

Carreira and Zisserman's network (arXiv 1705.07750), trained on Kinetics-400; features are its 400 logits. All other
weights here are safetensors. This one is published as TorchScript alone, which is a program: it is run only where the
user names the file, and only where its SHA-256 is the known one, or one that the user states.
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcm.errors import UserError
from mcm.evaluation.frechet import Array
from mcm.evaluation.fvd import ClipFeatures, VideoFeatures

# Of i3d_torchscript.pt, 51,235,320 bytes.
KNOWN_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
LARGEST = 2**30  # bytes; nothing larger is read
FEWEST = 10  # frames: of fewer its poolings over time leave nothing

_log = logging.getLogger("mcm")


class I3DFeatures(ClipFeatures):
    """Features of clips by I3D: all frames as they come, resized to 224 x 224 by the file itself.

    file: the TorchScript file; sha256: what its SHA-256 must be. All clips must be of one number of frames, at least
    10. UserError for a file that is missing, another one, or no such network.
    """

    def __init__(
        self,
        file: str | Path,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
        sha256: str = KNOWN_SHA256,
    ):
        self.file = Path(file).expanduser()
        self.name, self.device, self.batch_size = self.file.name, torch.device(device), batch_size
        content = _read(self.file)
        self.sha256 = hashlib.sha256(content).hexdigest()
        if self.sha256 != sha256.strip().lower():
            raise UserError(
                f"the FVD network {self.file}: its SHA-256 is {self.sha256}; expected {sha256}. A TorchScript file is "
                f"a program and is not run unseen: get the known one, or state this sum (--fvd-sha256) if you trust it"
            )
        _log.warning(
            "the FVD network %s is TorchScript, a program that is run as it stands; its SHA-256 is %s, %s",
            self.file, self.sha256, "that of the known I3D" if self.sha256 == KNOWN_SHA256 else "as you stated",
        )  # fmt: skip
        try:  # of the bytes that the sum was made of
            self.network: Any = torch.jit.load(io.BytesIO(content), map_location=self.device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"the FVD network {self.file}: is no TorchScript file that torch can load: {_last_line(error)}"
            ) from error
        self.frames: int | None = None  # of all clips, known with the first
        self.dimensions = 0

    def _features(self, videos: Tensor) -> Array:
        frames = videos.shape[2]
        if frames < FEWEST:
            raise UserError(f"clips of {frames} frames: the FVD network {self.name} reads at least {FEWEST}")
        if self.frames not in (None, frames):
            raise UserError(f"clips of {self.frames} and of {frames} frames: expected one number for this FVD network")
        pixels = (videos.to(self.device, torch.float32) + 1) * 127.5
        try:  # rescale: of 0..255 to -1..1; resize: bilinear, to 224 x 224; features: before the softmax
            found = self.network(pixels, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            raise UserError(
                f"the FVD network {self.file}: cannot be called as the known I3D: {_last_line(error)}"
            ) from error
        if not isinstance(found, Tensor) or found.shape[:1] != videos.shape[:1] or found.ndim != 2:
            said = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"the FVD network {self.file}: gives {said} for {len(videos)} clips; expected (clips, D)")
        self.frames, self.dimensions = frames, int(found.shape[1])
        return found.cpu().numpy().astype(np.float64)

    def protocol(self) -> dict[str, Any]:
        return {
            "network": self.name,
            "format": "TorchScript",
            "weights_sha256": self.sha256,
            "known_i3d": self.sha256 == KNOWN_SHA256,
            "frames": self.frames,
            "size": [224, 224],
            "resize": "bilinear, by the file",
            "resampling": "none: all frames",
            "pixels": "0..255, not rounded; scaled to -1..1 by the file",
            "pooling": "logits",
            "dimensions": self.dimensions,
        }


def load_features(
    name: str | Path, device: torch.device | str = "cpu", sha256: str | None = None
) -> ClipFeatures:
    """A VideoMAE by folder, pocket name or hub id; an I3D where `name` is a file.

    sha256: of that file where it is not the known one. UserError as those classes, and for a sum without a file.
    """
    if Path(name).expanduser().is_file():
        return I3DFeatures(name, device, sha256=sha256 or KNOWN_SHA256)
    if sha256 is not None:
        raise UserError(
            f"the FVD network {name}: is no file, and a SHA-256 is that of a TorchScript file; leave it out"
        )
    return VideoFeatures(name, device)


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"the FVD network {file}: has {file.stat().st_size} bytes; expected at most {LARGEST}")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"the FVD network {file}: cannot be read: {error.strerror or error}") from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
