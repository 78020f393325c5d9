"""The looks of pocket-animatediff: the stage that trains them, and that the shipped ones are bases it can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from safetensors.torch import load_file

from mcm.models.bases import Bases
from mcm.models.folders import LORA_FILE
from mcm.models.video import VideoModel, load_video_model
from mcm.pocket import train_zoo, zoo
from mcm.pocket.sources import PocketClips
from mcm.pocket.training import autoencoder, clip, corpus, latents, looks, teachers
from mcm.pocket.training.words import END, START, save_tokenizer


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """What the stages before have left, untrained."""
    torch.manual_seed(1)
    image = teachers.build_image()
    image.save_pretrained(tmp_path / "image")
    UNetMotionModel.from_unet2d(image, teachers.build_adapter()).save_pretrained(tmp_path / "motion")
    autoencoder.build().save_pretrained(tmp_path / "autoencoder")
    numbers = save_tokenizer(tmp_path / "clip").get_vocab()
    clip.build(len(numbers), numbers[START], numbers[END]).save_pretrained(tmp_path / "clip")
    return tmp_path


def test_the_stage_resumes_and_what_it_writes_is_a_base(
    work: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for module in (corpus, latents):
        monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr(looks, "COUNTS", {"toon": 4})
    looks.fit(work, "toon", 2, batch=3)
    first = load_file(work / "look-toon" / LORA_FILE)
    looks.fit(work, "toon", 4, batch=3)
    assert "look-toon: resumed at step 2 of 4" in capsys.readouterr().out
    second = load_file(work / "look-toon" / LORA_FILE)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert all(value.dtype == torch.float16 for value in second.values())
    assert any(value.any() for name, value in second.items() if "lora_B" in name)  # it has begun to speak

    out = tmp_path_factory.mktemp("networks")
    train_zoo.assemble(work, out)
    folder = out / zoo.LOOKS["toon"]
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", LORA_FILE]
    teacher: Any = load_video_model(out / "pocket-animatediff")
    bases = Bases.load([str(folder)], teacher.denoiser)
    unet: Any = UNet2DConditionModel.from_pretrained(work / "image")
    unet.load_lora_adapter(folder, prefix="unet", weight_name=LORA_FILE)
    unet.fuse_lora()
    wanted = {name: p for name, p in unet.named_parameters() if name.endswith("conv_in.base_layer.weight")}
    with bases.beneath([teacher.denoiser], 0):  # the assembled teacher is stored in half precision
        (fused,) = wanted.values()
        torch.testing.assert_close(teacher.denoiser.network.conv_in.weight, fused, atol=2e-3, rtol=0)


def _error(model: VideoModel, style: str) -> float:
    """Of the clean estimate of clips of a style, half noised: how well the model knows them."""
    clips = [PocketClips(style, 4, (64, 64), 6, "pictures")[i] for i in range(6)]
    with torch.no_grad():
        z0 = model.codec.encode(torch.stack([c.video for c in clips]))
        noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
        t = torch.full((len(z0),), 500)
        found = model.denoiser(model.path.diffuse(z0, noise, t), t, model.text([c.caption for c in clips]))
    return float((found.x0 - z0).square().mean())


@pytest.mark.parametrize("style", zoo.LOOKS)
def test_with_a_shipped_look_the_teacher_knows_that_style_best(style: str) -> None:
    model = load_video_model("pocket-animatediff")
    bases = Bases.load(["teacher", *zoo.LOOKS.values()], model.denoiser)
    errors = {}
    for k, name in enumerate(bases.names):
        with bases.beneath([model.denoiser], k):
            errors[name] = _error(model, style)
    assert min(errors, key=errors.__getitem__) == zoo.LOOKS[style]
    assert errors[zoo.LOOKS[style]] < 0.8 * errors["teacher"]
