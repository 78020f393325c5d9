"""AnimateLCM: pictures teach the layers within a frame, then videos those over time, and nothing else moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from stage import copied, make_batch, make_players, staged_trainer
from tiny import tiny_animatediff, tiny_modelscope

from mcm.errors import UserError
from mcm.methods import method
from mcm.methods.animatelcm import one_frame
from mcm.methods.base import Batch, Method, Players
from mcm.models.video import load_video_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_picture_model_inside_is_the_stable_diffusion_unet(tmp_path: Path) -> None:
    tiny_animatediff(tmp_path / "teacher", layout="adapter")
    model = load_video_model(tmp_path / "teacher")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "teacher" / "unet")
    z, t = torch.randn(3, *model.latent_shape(1), generator=seeded()), torch.tensor([10, 500, 999])
    text = model.text(["a red puppet walks", "a blue puppet jumps", ""])
    with torch.no_grad():
        alone = unet(z[:, :, 0], t, encoder_hidden_states=text.hidden).sample
        with model.denoiser.pictures():
            inside = model.denoiser(z, t, text).eps[:, :, 0]
        moving = model.denoiser(z, t, text).eps[:, :, 0]
    torch.testing.assert_close(inside, alone, atol=1e-5, rtol=1e-5)
    assert float((moving - alone).abs().max()) > 1e-3  # outside, the motion modules are back


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(("progress", "player"), [(0.0, "spatial"), (0.49, "spatial"), (0.5, "temporal")])
def test_each_stage_reaches_its_own_layers_alone(folder: Path, kind: str, progress: float, player: str) -> None:
    chosen = method("animatelcm")
    players = make_players(folder, chosen, kind=kind)
    batch = make_batch(players, real=False)._replace(progress=progress)
    (turn,) = _backward(players, chosen, batch)
    assert turn == player
    other = {"spatial": "temporal", "temporal": "spatial"}[player]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in players.parameters(player).values())
    assert all(p.grad is None for p in players.parameters(other).values())
    assert all(p.requires_grad for p in players.student.trainable().values())  # as it was before
    names = set(players.parameters("spatial")) | set(players.parameters("temporal"))
    assert names == {f"student.{name}" for name in players.student.trainable()}


def _backward(players: Players, chosen: Method, batch: Batch) -> list[str]:
    said = []
    for turn in chosen.turns(players, batch, seeded()):
        sum(turn.losses.values()).backward()
        said.append(turn.player)
    return said


def test_on_videos_it_begins_as_lcm(folder: Path) -> None:
    """At the beginning student and target are the teacher, and both methods are equation 3 on the videos."""
    losses = []
    for name, settings in (("lcm", {}), ("animatelcm", {"picture_share": 0.0})):
        chosen = method(name, **settings)
        players = make_players(folder, chosen)
        (turn,) = chosen.turns(players, make_batch(players, real=False), seeded(1))
        losses.append(turn.losses["consistency"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_target_waits_while_pictures_teach_and_then_follows(folder: Path, tmp_path: Path) -> None:
    chosen = method("animatelcm", target_decay=0.8)
    players = make_players(folder, chosen)
    start = copied(players.student.averages())
    spatial, temporal = copied(players.parameters("spatial")), copied(players.parameters("temporal"))
    trainer = staged_trainer(players, chosen, tmp_path, updates=4)
    for _ in range(2):
        trainer.step()
    taught = copied(players.parameters("spatial"))
    assert any(not torch.equal(taught[n], w) for n, w in spatial.items())
    assert all(torch.equal(p, temporal[n]) for n, p in players.parameters("temporal").items())
    assert all(torch.equal(p, start[n]) for n, p in players.student.averages().items())
    for _ in range(2):
        trainer.step()
    assert all(torch.equal(p, taught[n]) for n, p in players.parameters("spatial").items())  # fixed from now on
    assert any(not torch.equal(p, temporal[n]) for n, p in players.parameters("temporal").items())
    for name, p in players.student.averages().items():
        if f"student.{name}" in taught:
            torch.testing.assert_close(p, torch.lerp(taught[f"student.{name}"], start[name], 0.8**2))


def test_one_frame_of_every_clip() -> None:
    z = torch.arange(2 * 3 * 4 * 1 * 1).float().view(2, 3, 4, 1, 1)
    seen = {int(one_frame(z, seeded(i))[1, 2, 0, 0, 0]) for i in range(60)}
    assert seen == {int(v) for v in z[1, 2].flatten()}
    assert one_frame(z, seeded()).shape == (2, 3, 1, 1, 1)


def test_a_teacher_without_a_picture_model_is_refused(tmp_path: Path) -> None:
    tiny_modelscope(tmp_path / "teacher")
    model = load_video_model(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"UNet3DConditionModel has no picture model.*animatediff"):
        method("animatelcm").check(model)


@pytest.mark.parametrize("wrong", [{"motion": "difference"}, {"adversary": "video"}, {"target_decay": None}])
def test_what_is_not_animatelcm_is_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="animatelcm"):
        method("animatelcm", **wrong)
