"""AnimateDiff-Lightning: its stages, whose layers move, what the discriminator is, and where a step leads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stage import copied, make_batch, make_players, staged_trainer
from tiny import tiny_animatediff, tiny_modelscope

from mcm.diffusion.paths import VariancePreserving
from mcm.diffusion.solvers import euler_step
from mcm.errors import UserError
from mcm.methods import method
from mcm.methods.lightning import Lightning, Phase, renoise
from mcm.models.encoder_discriminator import EncoderDiscriminator
from mcm.models.video import load_video_model
from mcm.samplers.euler import Euler
from mcm.training.average import PowerAverage

NAME = "animatediff-lightning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lightning(**settings) -> Lightning:
    chosen = method(NAME, **settings)
    assert isinstance(chosen, Lightning)
    return chosen


def test_stages_halve_and_have_two_phases_each() -> None:
    assert lightning(final_steps=2).phases == [
        Phase(32, 128, "mse"),
        Phase(8, 32, "conditional"), Phase(8, 32, "unconditional"),
        Phase(4, 8, "conditional"), Phase(4, 8, "unconditional"),
        Phase(2, 4, "conditional"), Phase(2, 4, "unconditional"),
    ]  # fmt: skip
    assert lightning(final_steps=2).stages == (0, 1 / 7, 3 / 7, 5 / 7)


@pytest.mark.parametrize("updates", [5, 23, 500])
def test_the_student_becomes_the_teacher_exactly_where_a_stage_ends(updates: int) -> None:
    chosen = lightning(final_steps=4)
    steps = [chosen.phase(u / updates).steps for u in range(updates)]
    copies = [chosen.decay(u / updates, (u + 1) / updates) for u in range(updates)]
    for u in range(updates - 1):
        assert (copies[u] == 0.0) == (steps[u] != steps[u + 1])
    assert sorted(set(steps), reverse=True) == [32, 8, 4]
    assert copies.count(0.0) == 2


@pytest.mark.parametrize("make", [tiny_animatediff, tiny_modelscope])
def test_the_encoder_is_the_teachers_way_to_its_middle(tmp_path: Path, make) -> None:
    make(tmp_path / "teacher")
    model = load_video_model(tmp_path / "teacher")
    judge = EncoderDiscriminator.of(model.denoiser, seeded())
    seen = []
    hook = model.denoiser.network.mid_block.register_forward_hook(lambda m, given, out: seen.append(out))
    z, t = torch.randn(2, *model.latent_shape(4), generator=seeded()), torch.tensor([10, 900])
    text = model.text(["a red puppet walks", "a blue puppet jumps"])
    with torch.no_grad():
        model.denoiser(z, t, text)
        middle = judge._middle(z, t, text.hidden)
    hook.remove()
    torch.testing.assert_close(middle.transpose(1, 2).flatten(0, 1), seen[0])
    assert judge(z, t, text).shape == judge(z, t, text, (z, t)).shape == (2,)


@pytest.mark.parametrize(("progress", "adversarial"), [(0.0, False), (0.25, True), (0.5, True)])
def test_each_turn_reaches_its_own_weights_alone(folder: Path, progress: float, adversarial: bool) -> None:
    chosen = lightning()
    players = make_players(folder, chosen)
    turns = chosen.turns(players, make_batch(players, real=False)._replace(progress=progress), seeded())
    turn = next(turns)
    assert (turn.player, list(turn.losses)) == ("temporal", ["adversarial" if adversarial else "mse"])
    sum(turn.losses.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in players.parameters("temporal").values())
    for player in ("spatial", "discriminator"):
        assert all(p.grad is None for p in players.parameters(player).values())
    if adversarial:
        was = {n: p.grad.clone() for n, p in players.parameters("temporal").items() if p.grad is not None}
        turn = next(turns)
        assert turn.player == "discriminator"
        sum(turn.losses.values()).backward()
        heads = {n: p for n, p in players.parameters("discriminator").items() if n.startswith("encoder.network.mid")}
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.values())
        assert all(torch.equal(players.parameters("temporal")[n].grad, g) for n, g in was.items())
    assert next(turns, None) is None


def test_a_run_goes_through_its_stages(folder: Path, tmp_path: Path) -> None:
    """Five phases of one update each: 32 by MSE, 8 twice, 4 twice."""
    chosen = lightning(guidance_min=1.0, guidance_max=2.0)
    players = make_players(folder, chosen)
    spatial = copied(players.parameters("spatial"))
    trainer = staged_trainer(players, chosen, tmp_path, updates=5)
    trainer.average = PowerAverage(players.student.trainable(), 0.15)
    taught = []
    rates = []
    for _ in range(5):
        numbers = trainer.step()
        rates.append((numbers["rate/temporal"], numbers["rate/discriminator"]))
        taught.append((copied(players.student.trainable()), copied(players.student.averages())))  # pyright: ignore[reportArgumentType]

    def same(a: dict, b: dict) -> bool:
        return all(torch.equal(a[n], b[n]) for n in a)

    gently = chosen.adversarial_rate * 1e-2  # where an adversary alone teaches
    assert rates == [(1e-2, 1e-2), *[(gently, 1e-2)] * 4]
    (s0, t0), (s1, t1), (s2, t2), (s3, t3), (s4, t4) = taught
    assert same(s0, t0)  # the first stage ended: its student is the next one's teacher
    assert same(t0, t1)
    assert not same(s1, t1)
    assert same(s2, t2)
    assert same(t2, t3)
    assert same(t3, t4)
    assert not same(s3, s4)
    kept = 0.5 ** (trainer.average.gamma + 1)  # of two updates: the last stage's alone
    for name, value in trainer.average.values.items():
        torch.testing.assert_close(value, s4[name].lerp(s3[name], kept))
    assert all(torch.equal(p, spatial[n]) for n, p in players.parameters("spatial").items())


def test_the_teacher_walks_eulers_steps(folder: Path) -> None:
    chosen = lightning()
    players = make_players(folder, chosen)
    batch, path = make_batch(players, real=False), players.model.path
    times = Euler().times(path, 8)
    z = torch.randn(batch.z0.shape, generator=seeded(3))
    pair = [times[k].expand(2) for k in range(2, 5)]
    found = chosen._teachers(players, z, pair, batch._replace(progress=0.9))
    with torch.no_grad():
        for a, b in ((pair[0], pair[1]), (pair[1], pair[2])):
            z = euler_step(path, players.student.target(z, a, batch.text), a, b, z)
    torch.testing.assert_close(found, z)


def test_renoised_latents_are_as_the_forward_process_makes_them() -> None:
    path = VariancePreserving.from_config({"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012})
    s, t = torch.tensor([-1, 10, 250, 700]), torch.tensor([500, 10, 750, 750])
    one, none = torch.ones(4, 1, 1, 1, 1), torch.zeros(4, 1, 1, 1, 1)
    clean = renoise(path, path.diffuse(one, none, s), none, s, t).flatten()
    torch.testing.assert_close(clean, path.alpha(t))
    kept = renoise(path, path.diffuse(none, one, s), none, s, t).flatten()
    added = renoise(path, none, one, s, t).flatten()
    torch.testing.assert_close(kept**2 + added**2, path.sigma(t) ** 2)


@pytest.mark.parametrize(
    "wrong",
    [{"adversary": "video"}, {"motion": "low"}, {"final_steps": 3}, {"solver_steps": 30}, {"target_decay": 0.9}],
)
def test_what_it_cannot_take_is_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        method(NAME, **wrong)


def test_a_teacher_without_layers_of_its_own_over_time_is_refused(tmp_path: Path) -> None:
    tiny_modelscope(tmp_path / "teacher")
    with pytest.raises(UserError, match="animatediff"):
        lightning().check(load_video_model(tmp_path / "teacher"))
