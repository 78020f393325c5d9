"""AnimateDiff-Lightning over several base image models: who sees which, what learns, and that no trace stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from stage import make_batch, make_players
from tiny import tiny_animatediff, tiny_look
from tiny_trainer import make_trainer, weights

from mcm.errors import UserError
from mcm.methods import method
from mcm.methods.base import Players
from mcm.models.bases import spatial
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.video import load_video_model
from mcm.recipe import MethodConfig

NAME = "animatediff-lightning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """animatediff/, a teacher; other/, an image UNet; look/, a LoRA; built/animatediff/, the teacher on the other."""
    folder = tmp_path_factory.mktemp("stage")
    tiny_animatediff(folder / "animatediff", "adapter")
    tiny_animatediff(folder / "other", "adapter", seed=7)
    tiny_look(folder / "look", seed=1)
    shutil.copytree(folder / "animatediff", folder / "built" / "animatediff")
    shutil.copytree(folder / "other" / "unet", folder / "built" / "animatediff" / "unet", dirs_exist_ok=True)
    return folder


def names(folder: Path) -> tuple[str, ...]:
    return "teacher", str(folder / "other"), str(folder / "look")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own(players: Players) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in spatial(players.model.denoiser).items()}


@pytest.mark.parametrize(("kind", "progress"), [("lora", 0.0), ("lora", 0.3), ("full", 0.3)])
def test_a_step_on_a_base_is_that_of_a_teacher_built_with_it(folder: Path, kind: str, progress: float) -> None:
    """The guided teacher, the target and the student: all three. The discriminator begins on the teacher's own."""
    chosen, plain = method(NAME, bases=names(folder)), method(NAME)
    ours, theirs = make_players(folder, chosen, kind=kind), make_players(folder / "built", plain, kind=kind)
    assert isinstance(ours.discriminator, EncoderDiscriminator)
    assert isinstance(theirs.discriminator, EncoderDiscriminator)
    theirs.discriminator.load_state_dict(ours.discriminator.state_dict(), strict=False)  # but for the embeddings, zeros
    batch = make_batch(ours, real=False)._replace(progress=progress)
    found = {}
    for base in (0, 1):
        with ours.beneath(base):
            turns = chosen.turns(ours, batch._replace(base=base), seeded())
            found[base] = {name: loss.item() for turn in turns for name, loss in turn.losses.items()}
    wanted = {name: loss.item() for turn in plain.turns(theirs, batch, seeded()) for name, loss in turn.losses.items()}
    assert found[1] == pytest.approx(wanted, rel=1e-4)
    assert found[0] != pytest.approx(wanted, rel=1e-3)


def test_gradients_reach_the_layers_over_time_alone(folder: Path) -> None:
    chosen = method(NAME, bases=names(folder))
    players = make_players(folder, chosen)
    before = own(players)
    for base in range(3):
        with players.beneath(base):
            for turn in chosen.turns(
                players, make_batch(players, real=False)._replace(progress=0.3, base=base), seeded()
            ):
                sum(turn.losses.values()).backward()
                if turn.player == "temporal":
                    assert any(p.grad is not None and p.grad.any() for p in players.parameters("temporal").values())
                    assert all(p.grad is None for p in players.parameters("spatial").values())
        assert all(p.grad is None for p in spatial(players.model.denoiser).values())
        assert all(torch.equal(p, before[n]) for n, p in own(players).items())
    embeddings = players.parameters("discriminator")["bases"]
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum(1).bool().tolist() == [True, True, True]  # each base's own has learned


def test_the_discriminator_is_told_which_base_it_judges(folder: Path) -> None:
    model = load_video_model(folder / "animatediff")
    one, three = (EncoderDiscriminator.of(model.denoiser, seeded(), n) for n in (1, 3))
    assert {*three.trainable()} - {*one.trainable()} == {"bases"}
    assert all(torch.equal(p, three.trainable()[n]) for n, p in one.trainable().items())
    z, t = torch.randn(2, *model.latent_shape(4), generator=seeded()), torch.tensor([10, 900])
    text, before = model.text(["a red puppet walks", "a blue puppet jumps"]), (z.flip(0), t + 50)
    with torch.no_grad():
        for given in (None, before):
            assert torch.equal(one(z, t, text, given), three(z, t, text, given, 2))  # zeros, to begin with
        assert three.bases is not None
        three.bases[2] = 0.5
        assert torch.equal(one(z, t, text, before), three(z, t, text, before, 1))
        assert (one(z, t, text, before) - three(z, t, text, before, 2)).abs().max() > 1e-4
    three(z, t, text, None, 1).sum().backward()
    assert three.bases.grad is not None
    assert three.bases.grad.abs().sum(1).bool().tolist() == [False, True, False]


def seen(trainer: object) -> list[int]:
    """The bases of the batches that a trainer asks for from now on."""
    material, found = trainer.material, []  # pyright: ignore[reportAttributeAccessIssue]

    def noted(index: list[int], rng: torch.Generator, base: int) -> object:
        found.append(base)
        return material(index, rng, base)

    trainer.material = noted  # pyright: ignore[reportAttributeAccessIssue]
    return found


def test_bases_take_turns_and_an_interrupted_run_ends_as_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    settings = {"name": NAME, "updates": 3, "accumulation": 2, "batch": 1, "bases": names(folder)}
    whole, _ = make_trainer(folder, tmp_path / "whole", **settings)
    bases = seen(whole)
    whole.run()
    assert bases == [0, 1, 2, 0, 1, 2]
    first, _ = make_trainer(folder, tmp_path / "parts", **settings)
    first.after_update = lambda update: (_ for _ in ()).throw(KeyboardInterrupt) if update == 1 else None
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second, _ = make_trainer(folder, tmp_path / "parts", **settings)
    bases = seen(second)
    second.run()
    assert bases == [2, 0, 1, 2]  # from update 1
    ends = weights(whole), weights(second)
    assert any(name == "discriminator/bases" and value.any() for name, value in ends[0].items())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_the_teachers_own_base_is_back_when_a_step_fails(folder: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(folder, tmp_path / "run", name=NAME, bases=names(folder))
    trainer.update = 1  # the second base's turn
    other = spatial(load_video_model(folder / "built" / "animatediff").denoiser)
    before, inside = own(trainer.players), []

    def failing(players: Players, batch: object, rng: torch.Generator) -> object:
        inside.append(own(players))
        raise RuntimeError("within the step")
        yield

    object.__setattr__(trainer.method, "turns", failing)
    with pytest.raises(RuntimeError, match="within the step"):
        trainer.step()
    assert all(torch.equal(p, other[n]) for n, p in inside[0].items())
    assert any(not torch.equal(p, before[n]) for n, p in inside[0].items())
    assert all(torch.equal(p, before[n]) for n, p in own(trainer.players).items())


@pytest.mark.parametrize("other", ["mcm", "lcm", "animatelcm", "frames"])
def test_methods_that_train_the_image_model_refuse_bases(other: str) -> None:
    with pytest.raises(UserError, match=r"method\.bases is for animatediff-lightning"):
        MethodConfig(name=other, bases=("teacher",))
