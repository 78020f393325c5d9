"""The stage "control" of the zoo: what its network begins as, what it sees, that it learns, and what is assembled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from torch import Tensor

from mcm.data.open import open_pose
from mcm.models.control import FrameControl, load_controlnet
from mcm.models.video import load_video_model
from mcm.pocket import train_zoo, world, zoo
from mcm.pocket.sources import action
from mcm.pocket.training import autoencoder, clip, control, corpus, latents, teachers
from mcm.pocket.training.words import END, START, save_tokenizer


@pytest.fixture(scope="module")
def image() -> Any:
    torch.manual_seed(0)
    return teachers.build_image()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, image: UNet2DConditionModel) -> Path:
    """What the stages before have left, untrained."""
    work = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(1)
    image.save_pretrained(work / "image")
    UNetMotionModel.from_unet2d(image, teachers.build_adapter()).save_pretrained(work / "motion")
    autoencoder.build().save_pretrained(work / "autoencoder")
    tokenizer = save_tokenizer(work / "clip")
    numbers = tokenizer.get_vocab()
    clip.build(len(tokenizer), numbers[START], numbers[END]).save_pretrained(work / "clip")
    return work


def test_it_begins_as_the_image_unet_and_says_nothing(image: Any) -> None:
    network: Any = control.build(image)
    assert sum(p.numel() for p in network.parameters()) < 1_500_000
    own, theirs = network.state_dict(), image.state_dict()
    assert torch.equal(own["down_blocks.0.resnets.0.conv1.weight"], theirs["down_blocks.0.resnets.0.conv1.weight"])
    with torch.no_grad():
        said = network(
            torch.randn(2, 8, 8, 8), torch.tensor([10, 900]), encoder_hidden_states=torch.randn(2, 32, 96),
            controlnet_cond=torch.rand(2, 3, 64, 64),
        )  # fmt: skip
    assert [tuple(r.shape[1:]) for r in said.down_block_res_samples] == [(48, 8, 8), (48, 8, 8), (48, 4, 4), (96, 4, 4)]
    assert not any(r.any() for r in (*said.down_block_res_samples, said.mid_block_res_sample))


def test_skeletons_are_those_of_a_users_pose() -> None:
    jump = action("jump", 8)
    assert jump is not None
    assert torch.equal(control.skeletons(jump.points), open_pose("jump", 8, (64, 64)).transpose(0, 1))


def test_the_stage_runs_resumes_and_is_assembled(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (corpus, latents):
        monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr(control, "CLIPS", 4)
    shown: list[np.ndarray] = []
    seen: list[Tensor] = []
    drawn, loss = control.draw_poses, control.denoising_loss

    def draw(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        shown.append(points)
        return drawn(points, size)

    def denoising_loss(network: Any, z: Tensor, text: Tensor, rng: torch.Generator) -> Any:
        seen.append(z)
        return loss(network, z, text, rng)

    monkeypatch.setattr(control, "draw_poses", draw)
    monkeypatch.setattr(control, "denoising_loss", denoising_loss)
    control.fit(work, 2, batch=3)
    assert [len(points) for points in shown] == [3, 3]
    truth = world.stage([world.spec("train", i) for i in range(4)], 8).flatten(0, 1).numpy()
    frames = torch.from_numpy(np.load(work / "latents" / "train-broadcast" / "000000.npy")).float()
    frames = frames.transpose(1, 2).flatten(0, 1)
    for points, pictures in zip(shown, seen, strict=True):  # the skeleton of a frame is that frame's own
        poses = [int(np.abs(truth - pose[:, :2]).max((1, 2)).argmin()) for pose in points]
        assert poses == [int((frames - z).flatten(1).abs().amax(1).argmin()) for z in pictures]
    control.fit(work, 4, batch=3)  # goes on, from the second step
    assert len(shown) == 4

    train_zoo.assemble(work, tmp_path)
    folder = tmp_path / zoo.CONTROLNETS["pocket-animatediff"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    teacher = load_video_model(tmp_path / "pocket-animatediff")
    network = load_controlnet(folder, teacher)
    assert (folder / "diffusion_pytorch_model.safetensors").stat().st_size < 2.1 * sum(
        p.numel() for p in network.parameters()
    )
    z, t, text = torch.randn(1, 8, 2, 8, 8), torch.tensor([500]), teacher.text(["a person"])
    with torch.no_grad():
        found = FrameControl(network, open_pose("walk", 2, (64, 64))[None])(z, t, text)
    assert all(float(r.abs().max()) > 0 for r in (*found.down, found.mid))  # it has begun to speak


def test_it_learns_to_follow(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on one batch, with the stage's own losses: they fall, and only the ControlNet changes."""
    for module in (corpus, latents):
        monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr(control, "CLIPS", 4)
    seen: list[float] = []

    def train(name: str, model: Any, losses: Any, **settings: Any) -> dict[str, Tensor]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"])
        for _ in range(12):
            (loss,) = losses(0, torch.Generator().manual_seed(0)).values()
            seen.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    monkeypatch.setattr(control, "train", train)
    control.fit(work, 12, batch=4)
    assert seen[-1] < 0.9 * seen[0]
