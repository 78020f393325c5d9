"""The TorchScript I3D for FVD: run only where the user named the file and its sum is known; how it is called."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from mcm.errors import UserError
from mcm.evaluation import i3d
from mcm.evaluation.evaluator import Evaluator
from mcm.evaluation.fvd import VideoFeatures, fvd
from mcm.evaluation.i3d import KNOWN_SHA256, I3DFeatures, load_features

Clips = Callable[..., Tensor]


class Scripted(nn.Module):
    """Called as the published file: pixels in 0..255 where rescale, any size where resize."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 6, (3, 8, 8), stride=(2, 8, 8))

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        if resize:
            x = nn.functional.interpolate(x, size=(x.shape[2], 32, 32), mode="trilinear", align_corners=False)
        if rescale:
            x = 2 * x / 255 - 1
        said = self.conv(x).mean(dim=(2, 3, 4))
        return said if return_features else said.softmax(dim=1)


@pytest.fixture(scope="module")
def network() -> Scripted:
    torch.manual_seed(0)
    return Scripted().eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, network: Scripted) -> Path:
    path = tmp_path_factory.mktemp("nets") / "i3d_torchscript.pt"
    torch.jit.script(network).save(str(path))
    return path


@pytest.fixture(scope="module")
def known(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_another_file_is_never_run(file: Path, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *given, **more: pytest.fail("an unknown program was loaded"))
    assert len(KNOWN_SHA256) == 64
    for wanted in (KNOWN_SHA256, "0" * 64, known[:-1]):
        with pytest.raises(UserError, match=f"its SHA-256 is {known}; expected {wanted}.*--fvd-sha256"):
            I3DFeatures(file, sha256=wanted)


def test_what_was_hashed_is_what_is_loaded(
    file: Path, known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is exchanged after the sum was made is not run."""
    path, read = tmp_path / "i3d.pt", i3d._read
    path.write_bytes(file.read_bytes())

    def exchanged(place: Path) -> bytes:
        content = read(place)
        place.write_bytes(b"another program")
        return content

    monkeypatch.setattr(i3d, "_read", exchanged)
    assert I3DFeatures(path, sha256=known).sha256 == known


def test_it_is_loaded_with_a_warning(file: Path, known: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mcm"):
        I3DFeatures(file, sha256=known.upper())
    assert "i3d_torchscript.pt is TorchScript, a program that is run as it stands" in caplog.text
    assert f"its SHA-256 is {known}, as you stated" in caplog.text


def test_features_are_the_logits_of_pixels_in_bytes(
    file: Path, known: str, network: Scripted, noise_videos: Clips
) -> None:
    videos = noise_videos(5, seed=0, frames=12)
    features = I3DFeatures(file, batch_size=2, sha256=known)
    with torch.no_grad():
        expected = network(videos, return_features=True)  # 32 x 32 already; rescaling undoes the bytes
    found = features(videos)
    assert found.dtype == np.float64
    assert_allclose(found, expected.numpy(), atol=1e-5)
    assert_allclose(features.collect(iter(videos)), found, atol=1e-6)
    protocol = features.protocol()
    assert (protocol["frames"], protocol["dimensions"], protocol["weights_sha256"]) == (12, 6, known)
    assert (protocol["known_i3d"], protocol["size"], protocol["format"]) == (False, [224, 224], "TorchScript")


def test_in_the_report(file: Path, known: str, noise_videos: Clips) -> None:
    real, made = noise_videos(8, seed=1, frames=10), noise_videos(8, seed=2, frames=10)
    features = load_features(file, sha256=known)
    evaluator = Evaluator(("fvd",), real, features, frechet_samples=5)
    evaluator.add(made, ["a"] * 8)
    row = evaluator.row(teacher="t", method="m", sampler="s", steps=1, guidance=1.0)
    assert row.fvd == pytest.approx(fvd(features(made), features(real)))
    protocol = evaluator.protocol()["fvd"]
    assert {"weights_sha256": known, "reference_clips": 8, "frames": 10}.items() <= protocol.items()


def test_which_network_a_name_is(file: Path, known: str, videomae_folder: Path) -> None:
    assert isinstance(load_features(videomae_folder), VideoFeatures)
    assert isinstance(load_features(str(file), sha256=known), I3DFeatures)
    with pytest.raises(UserError, match="its SHA-256 is"):  # no sum stated: the known one is expected
        load_features(file)
    with pytest.raises(UserError, match="is no file, and a SHA-256 is that of a TorchScript file"):
        load_features(videomae_folder, sha256=known)


def test_clips_that_it_cannot_read(file: Path, known: str, noise_videos: Clips) -> None:
    features = I3DFeatures(file, sha256=known)
    with pytest.raises(UserError, match=r"clips of 9 frames: .* reads at least 10"):
        features(noise_videos(1, seed=0, frames=9))
    features(noise_videos(1, seed=0, frames=10))
    with pytest.raises(UserError, match="clips of 10 and of 12 frames"):
        features(noise_videos(1, seed=0, frames=12))


def test_files_that_are_no_such_network(tmp_path: Path, noise_videos: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    def summed(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    path = tmp_path / "i3d.pt"
    with pytest.raises(UserError, match="cannot be read"):
        I3DFeatures(path)
    path.write_bytes(b"no program at all")
    with pytest.raises(UserError, match="is no TorchScript file"):
        I3DFeatures(path, sha256=summed(path))
    torch.jit.script(nn.Conv3d(3, 2, 3)).save(str(path))  # takes no word on rescaling
    with pytest.raises(UserError, match="cannot be called as the known I3D"):
        I3DFeatures(path, sha256=summed(path))(noise_videos(1, seed=0, frames=10))
    monkeypatch.setattr(i3d, "LARGEST", 100)
    with pytest.raises(UserError, match=r"has \d+ bytes; expected at most 100"):
        I3DFeatures(path)
