"""What the methods' turns are: the equations, and gradients for whose turn it is alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from stage import FRAMES, make_batch, make_players
from torch import Tensor

from mcm.diffusion.consistency import ConsistencyFunction
from mcm.diffusion.paths import Denoised, expand
from mcm.diffusion.solvers import ddim_step, guide
from mcm.errors import UserError
from mcm.methods import method, methods
from mcm.methods.base import Players
from mcm.models.video import TextEmbedding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("teachers")


def gradients(players: Players, player: str) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in players.parameters(player).items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_methods_are_found_by_name():
    assert {"lcm", "mcm"} <= set(methods())
    with pytest.raises(UserError, match="did you mean 'mcm'"):
        method("mcmm")


@pytest.mark.parametrize("family", ["animatediff", "modelscope"])
@pytest.mark.parametrize("name", ["lcm", "mcm"])
def test_each_turn_reaches_its_own_player_alone(folder, name, family):
    chosen = method(name, adversary="video")
    players = make_players(folder, chosen, family)
    turns = chosen.turns(players, make_batch(players), seeded())

    turn = next(turns)
    assert turn.player == "student"
    sum(turn.losses.values()).backward()
    assert any(g is not None and g.abs().sum() > 0 for g in gradients(players, "student").values())
    assert all(g is None for g in gradients(players, "discriminator").values())

    before = {k: g.clone() if g is not None else None for k, g in gradients(players, "student").items()}
    turn = next(turns)
    assert turn.player == "discriminator"
    sum(turn.losses.values()).backward()
    assert all(g is not None for g in gradients(players, "discriminator").values())
    for key, g in gradients(players, "student").items():
        was = before[key]
        assert (g is None and was is None) or (g is not None and was is not None and torch.equal(g, was))
    assert next(turns, None) is None


def test_frames_is_the_adversary_alone(folder):
    chosen = method("frames", generated_probability=0.0)
    players = make_players(folder, chosen)
    batch = make_batch(players)
    with pytest.MonkeyPatch.context() as patch:  # nothing is distilled: no teacher and no target is asked
        for voice in ("teacher", "target"):
            patch.setattr(players.student, voice, lambda *given: pytest.fail("asked for what the teacher says"))
        student, judge = chosen.turns(players, batch, seeded(3))
    assert (student.player, list(student.losses)) == ("student", ["adversarial"])
    assert judge.player == "discriminator"
    student.losses["adversarial"].backward()
    assert any(g is not None and g.abs().sum() > 0 for g in gradients(players, "student").values())
    for wrong in ({"adversary": "none"}, {"motion": "learnable"}, {"adversarial_start": 0.5}):
        with pytest.raises(UserError, match="adversary alone"):
            method("frames", **wrong)


@pytest.mark.parametrize("name", ["lcm", "mcm"])
def test_the_student_hears_the_discriminator_from_its_start_on(folder, name):
    chosen = method(name, adversary="video", adversarial_start=0.5)
    players = make_players(folder, chosen)
    batch = make_batch(players)
    for progress, heard in ((0.0, False), (0.49, False), (0.5, True), (0.9, True)):
        student, judge = chosen.turns(players, batch._replace(progress=progress), seeded(3))
        assert ("adversarial" in student.losses) == heard
        assert "discriminator" in judge.losses  # which learns all the time
    always = next(method(name, adversary="video").turns(players, batch, seeded(3)))
    late = next(chosen.turns(players, batch._replace(progress=0.5), seeded(3)))
    assert torch.equal(always.losses["adversarial"], late.losses["adversarial"])


def test_nothing_of_the_teacher_the_codec_or_the_backbone_gets_gradients(folder):
    chosen = method("mcm")
    players = make_players(folder, chosen)
    trained = {id(p) for who in chosen.order for p in players.parameters(who).values()}
    for turn in chosen.turns(players, make_batch(players), seeded()):
        sum(turn.losses.values()).backward()
    modules = [players.model.denoiser, players.model.codec, players.model.text, players.averaged_motion]
    assert players.discriminator is not None
    for module in [*modules, players.discriminator.features]:
        for p in module.parameters():
            assert id(p) in trained or p.grad is None


def test_lcm_is_its_equation(folder):
    """Equation of section 3.1, written out a second time from the networks' raw words."""
    chosen = method("lcm")
    players = make_players(folder, chosen)
    batch = make_batch(players, [0, 1, 2], real=False)
    (turn,) = chosen.turns(players, batch, seeded(5))

    rng, path = seeded(5), players.model.path
    index = torch.randint(50, (3,), generator=rng)
    t = 20 * (index + 1) - 1
    s = (t - 20).clamp(min=0)
    w = 5 + 10 * torch.rand(3, generator=rng)
    noise = torch.randn(batch.z0.shape, generator=rng)

    def at(v: Tensor) -> Tensor:
        return v.view(-1, 1, 1, 1, 1)

    def f(z: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        scaled = 4.0 * t.float()
        return at(0.25 / (scaled**2 + 0.25)) * z + at(scaled / (scaled**2 + 0.25).sqrt()) * x0

    z_t = at(path.alpha(t)) * batch.z0 + at(path.sigma(t)) * noise
    cond: Denoised = players.student.teacher(z_t, t, batch.text)
    empty = type(batch.text)(*(v.expand(3, *v.shape[1:]) for v in batch.empty))
    uncond: Denoised = players.student.teacher(z_t, t, empty)
    x0 = cond.x0 + at(w) * (cond.x0 - uncond.x0)
    eps = cond.eps + at(w) * (cond.eps - uncond.eps)
    z_s = at(path.alpha(s)) * x0 + at(path.sigma(s)) * eps
    with torch.no_grad():
        ours = f(z_t, t, players.student.student(z_t, t, batch.text).x0)
        theirs = f(z_s, s, players.student.student(z_s, s, batch.text).x0)
        wanted = (((ours - theirs) ** 2 + 1e-6).sqrt() - 1e-3).mean()
    assert turn.losses["consistency"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_mcm_with_the_raw_representation_and_real_videos_is_lcm(folder):
    lcm = method("lcm")
    mcm = method("mcm", motion="raw", adversary="none", generated_probability=0.0)
    players = make_players(folder, lcm)
    batch = make_batch(players, real=False)
    (one,) = lcm.turns(players, batch, seeded(1))
    # lambda is drawn first in MCM; the same numbers otherwise follow from a generator advanced by that draw
    rng = seeded(1)
    state = rng.get_state()
    (two,) = mcm.turns(players, batch, rng)
    rng.set_state(state)
    torch.rand(2, generator=rng)
    (three,) = lcm.turns(players, batch, rng)
    assert two.losses["motion"].item() == pytest.approx(three.losses["consistency"].item(), rel=1e-5)
    assert one.losses["consistency"].item() != pytest.approx(two.losses["motion"].item(), rel=1e-6)


def test_at_the_clean_end_the_target_asks_no_network(folder):
    """c_out(0) = 0, so a pass there would be waste (method, "where the official step spends")."""
    chosen = method("lcm")
    players = make_players(folder, chosen)
    z = make_batch(players, real=False).z0
    asked: list[int] = []
    original = players.student.target

    def counted(z, t, text, control=None):
        asked.append(len(z))
        return original(z, t, text, control)

    players.student.target = counted  # pyright: ignore[reportAttributeAccessIssue]
    batch = make_batch(players, real=False)
    assert torch.equal(chosen.target(players, z, torch.tensor([0, 0]), batch.text), z)
    assert asked == []
    out = chosen.target(players, z, torch.tensor([0, 499]), batch.text)
    assert asked == [1]
    assert torch.equal(out[0], z[0])
    assert not torch.equal(out[1], z[1])


@pytest.mark.parametrize("name", ["lcm", "mcm", "frames"])
def test_trajectories_start_from_pure_noise(folder, name):
    """With zero_terminal_snr there is nothing of z0 at the last time, and z_t is the path's at all others."""
    plain, chosen = (method(name, adversary="video", zero_terminal_snr=zero) for zero in (False, True))
    players = make_players(folder, chosen)
    z0 = make_batch(players).z0
    path = players.model.path
    t = torch.tensor([999, 979])
    seen, on_path = (one.noisy(players, z0, t, seeded(4)) for one in (chosen, plain))
    noise = torch.randn(z0.shape, generator=seeded(4))
    assert torch.equal(on_path, path.diffuse(z0, noise, t))
    assert torch.equal(seen[0], noise[0])
    assert torch.equal(seen[1], on_path[1])
    assert not torch.equal(seen[0], on_path[0])


def test_the_teacher_too_steps_from_that_noise(folder):
    chosen = method("lcm", solver_steps=1, zero_terminal_snr=True)  # one time: the last
    players = make_players(folder, chosen)
    batch = make_batch(players, real=False)
    pairs = [chosen.noisy_pair(players, z0, batch, seeded(6)) for z0 in (batch.z0, batch.z0 + 1)]
    for ours, others in zip(*pairs, strict=True):
        assert torch.equal(ours, others)  # z0 has no part in any of it
    z_t, t, z_s, s = pairs[0]
    assert (t == 999).all()
    assert (s == 0).all()
    plain = method("lcm", solver_steps=1).noisy_pair(players, batch.z0, batch, seeded(6))
    torch.testing.assert_close(plain[0], players.model.path.diffuse(batch.z0, z_t, t))
    assert not torch.equal(plain[2], z_s)


def test_a_midpoint_step_of_the_guided_teacher(folder):
    """z_s by hand: the teacher's word half-way, guided, in the place of its word at t."""
    chosen = method("lcm", solver="midpoint", solver_steps=4, guidance_min=2.0, guidance_max=2.0)
    players = make_players(folder, chosen)
    batch = make_batch(players, real=False)
    path, teacher = players.model.path, players.student.teacher
    z_t, t, z_s, s = chosen.noisy_pair(players, batch.z0, batch, seeded(8))
    empty = TextEmbedding(*(part.expand(len(t), *part.shape[1:]) for part in batch.empty))

    def said(z: Tensor, r: Tensor) -> Denoised:
        return guide(teacher(z, r, batch.text), teacher(z, r, empty), 3.0)

    assert s.tolist() == [749, 0]  # the clean end, where it is DDIM's step, and another time
    half = path.halfway(t, s)
    first = said(z_t, t)
    second = said(path.diffuse(*first, half), half)
    r = (path.log_snr(half) - path.log_snr(t)) / (path.log_snr(s) - path.log_snr(t))
    x0 = first.x0 + expand(0.5 / r, z_t) * (second.x0 - first.x0)
    expected = ddim_step(path, Denoised(x0, first.eps), t, s, z_t)
    torch.testing.assert_close(z_s[0], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z_s[1], first.x0[1], atol=1e-4, rtol=1e-4)
    plain = method("lcm", solver_steps=4, guidance_min=2.0, guidance_max=2.0)
    assert not torch.allclose(plain.noisy_pair(players, batch.z0, batch, seeded(8))[2], z_s, atol=1e-4)


@pytest.mark.parametrize("trajectory", ["one-step", "multi-step"])
def test_lambda_mixes_real_and_own_clips(folder, trajectory):
    players = make_players(folder, method("mcm", adversary="none"))
    batch = make_batch(players, list(range(12)), real=False)
    for share, most, least in ((0.0, 0, 0), (1.0, 12, 12), (0.5, 11, 1)):
        chosen = method("mcm", adversary="none", generated_probability=share, trajectory=trajectory)
        mixed = chosen.own_clips(players, batch, seeded(2))
        own = sum(not torch.equal(a, b) for a, b in zip(mixed, batch.z0, strict=True))
        assert least <= own <= most
        assert not mixed.requires_grad


def test_lambda_rises_over_the_first_part_of_the_run(folder):
    rising = method("mcm", adversary="none", generated_probability=0.8, generated_ramp=0.5)
    assert [rising.own_share(at) for at in (0.0, 0.125, 0.25, 0.5, 0.9)] == pytest.approx([0.0, 0.2, 0.4, 0.8, 0.8])
    assert method("mcm", adversary="none", generated_probability=0.8).own_share(0.0) == 0.8
    for one in (rising, method("mcm", adversary="none")):
        assert one.mean_own_share == pytest.approx(sum(one.own_share((i + 0.5) / 1000) for i in range(1000)) / 1000)
    players = make_players(folder, rising)
    batch = make_batch(players, list(range(12)), real=False)
    for progress, most, least in ((0.0, 0, 0), (0.5, 12, 5)):
        mixed = rising.own_clips(players, batch._replace(progress=progress), seeded(2))
        assert least <= sum(not torch.equal(a, b) for a, b in zip(mixed, batch.z0, strict=True)) <= most


def test_one_step_clips_are_the_consistency_function_of_pure_noise(folder):
    chosen = method("mcm", adversary="none", generated_probability=1.0)
    players = make_players(folder, chosen)
    batch = make_batch(players, real=False)
    made = chosen.own_clips(players, batch, seeded(8))
    rng = seeded(8)
    torch.rand(2, generator=rng)
    noise = torch.randn(batch.z0.shape, generator=rng)
    t = torch.tensor([999, 999])
    with torch.no_grad():
        x0 = players.student.student(noise, t, batch.text).x0
    torch.testing.assert_close(made, ConsistencyFunction()(noise, t, x0), rtol=1e-4, atol=1e-5)


def test_own_clips_differ_between_one_step_and_many(folder):
    one = method("mcm", adversary="none", generated_probability=1.0)
    many = dataclasses.replace(one, trajectory="multi-step", trajectory_steps=8)
    players = make_players(folder, one)
    batch = make_batch(players, real=False)
    assert not torch.allclose(one.own_clips(players, batch, seeded(3)), many.own_clips(players, batch, seeded(3)))


def test_real_frames_are_judged_under_their_own_captions(folder):
    """Fault 5 of the official code: penalty and loss paired real frames with the generated frames' captions."""
    chosen = method("mcm")
    players = make_players(folder, chosen)
    batch = make_batch(players)
    frames = torch.zeros(4, 3, *players.model.size)
    base = chosen.discriminator_losses(players, frames, batch, seeded(1))
    other = batch._replace(real_text=players.model.text(["at night"]).pooled.expand(4, -1))
    changed = chosen.discriminator_losses(players, frames, other, seeded(1))
    assert base["discriminator"].item() != pytest.approx(changed["discriminator"].item(), rel=1e-6)
    assert base["penalty"].item() != pytest.approx(changed["penalty"].item(), rel=1e-6)


def test_a_matching_discriminator_rejects_real_frames_under_other_captions(folder):
    chosen = method("mcm", matching_weight=2.0)
    players = make_players(folder, chosen)
    judge = players.discriminator
    assert judge is not None
    judge.augment = 0.0
    batch = make_batch(players)
    frames = torch.zeros(4, 3, *players.model.size)
    plain = method("mcm").discriminator_losses(players, frames, batch, seeded(1))
    with judge.frozen():  # whose norms do not move: the same heads twice
        losses = chosen.discriminator_losses(players, frames, batch, seeded(1))
        # a batch's captions come in pairs: the second of a pair is under its own, the first under the other pair's
        heads = judge.from_features(judge.see(batch.real_frames[[0, 2]]), batch.real_text[[2, 0]])
    wanted = torch.stack([(1 + head).relu().mean() for head in heads]).mean()
    torch.testing.assert_close(losses["mismatched"], 2 * wanted)
    assert set(losses) - set(plain) == {"mismatched"}

    alike = batch._replace(real_text=batch.real_text[:1].expand(4, -1))
    assert float(chosen.discriminator_losses(players, frames, alike, seeded(1))["mismatched"]) == 0.0


def test_a_matching_discriminator_learns_which_caption_a_frame_has(folder):
    """Two pictures, and made ones that are the same two: there is nothing to learn but whose caption is whose."""

    def margin(weight: float) -> float:
        chosen = method("mcm", matching_weight=weight, gradient_penalty=0.0, adversarial_loss="bce")
        players = make_players(folder, chosen)
        judge = players.discriminator
        assert judge is not None
        judge.augment = 0.0
        frames = (torch.rand(2, 3, *players.model.size, generator=seeded(5)) * 2 - 1).repeat(2, 1, 1, 1)
        said = torch.randn(2, players.model.text.width, generator=seeded(6))
        text, other = said.repeat(2, 1), said.flip(0).repeat(2, 1)
        batch = make_batch(players)._replace(real_frames=frames, real_text=text)
        batch = batch._replace(text=TextEmbedding(batch.text.hidden, text))
        chosen = dataclasses.replace(chosen, frames_picked=1)
        optimizer = torch.optim.AdamW(list(judge.trainable().values()), lr=1e-2)
        for step in range(40):
            optimizer.zero_grad()
            sum(chosen.discriminator_losses(players, frames, batch, seeded(step)).values()).backward()
            optimizer.step()
        judge.eval()
        with torch.no_grad():
            own, wrong = (judge(frames, words) for words in (text, other))
        return float(torch.stack([(a - b).mean() for a, b in zip(own, wrong, strict=True)]).mean())

    assert margin(1.0) > 0.2 > abs(margin(0.0))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_turn_elsewhere_moves_the_norms_as_a_turn_here(folder, weight):
    chosen = method("mcm", matching_weight=weight)
    here, there = make_players(folder, chosen), make_players(folder, chosen)
    frames = torch.zeros(4, 3, *here.model.size)
    chosen.discriminator_losses(here, frames, make_batch(here), seeded(1))
    chosen.elsewhere(there, 1)
    assert here.discriminator is not None
    assert there.discriminator is not None
    moved, unmoved = dict(there.discriminator.named_buffers()), make_players(folder, chosen).discriminator
    assert unmoved is not None
    norms = [name for name, _ in here.discriminator.named_buffers() if name.startswith("heads.")]
    assert norms
    for name in norms:
        torch.testing.assert_close(dict(here.discriminator.named_buffers())[name], moved[name])
    assert any(not torch.equal(moved[name], dict(unmoved.named_buffers())[name]) for name in norms)


def test_picked_frames_are_different_frames_of_each_clip(folder):
    chosen = method("mcm", frames_picked=3)
    players = make_players(folder, chosen)
    z = torch.randn(2, *players.model.latent_shape(FRAMES), generator=seeded())
    frames = chosen.picked_frames(players, z, seeded(4)).unflatten(0, (2, 3))
    whole = players.model.codec.decode(z)
    for clip in range(2):
        found = [
            next(t for t in range(FRAMES) if torch.allclose(frame, whole[clip, :, t], atol=1e-5))
            for frame in frames[clip]
        ]
        assert len(set(found)) == 3


def test_the_averaged_head_trails_the_head(folder):
    chosen = method("mcm")
    players = make_players(folder, chosen)
    with torch.no_grad():
        for p in players.motion.parameters():
            p.add_(1.0)
    before = [p.clone() for p in players.averaged_motion.parameters()]
    players.average(None, 0.95)
    for was, now, new in zip(before, players.averaged_motion.parameters(), players.motion.parameters(), strict=True):
        torch.testing.assert_close(now, 0.95 * was + 0.05 * new)
