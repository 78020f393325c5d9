"""The argument of the paper in ten seconds, on a teacher that is known exactly.

Clips are Gaussian: each channel has an appearance (what all its frames share) and a motion (what changes
between them), independent of each other. The best denoiser of such data is affine, and the probability-flow
ODE carries noise to clips by a formula. A student that starts as a copy of the teacher is distilled with the
package's own grid, solver step, consistency function, distance, motion representations and adversarial loss,
and makes clips in ONE step:

- LCM (raw latents) finds the ODE's motion and its appearance, that is the poor appearance of the videos;
- MCM without its discriminator (frame differences) finds the motion, and its appearance stays where it was;
- whole MCM finds the motion, and the appearance of the pictures;
- LCM with the same discriminator does not: its two losses pull apart, and the poor frames win.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mcm.adversarial import AdversarialLoss, gradient_penalty
from mcm.diffusion import (
    ConsistencyFunction,
    SolverGrid,
    VariancePreserving,
    ddim_step,
    distance,
    expand,
)
from mcm.diffusion.paths import Denoised
from mcm.motion import motion_representation

FRAMES = 4
BATCH = 384

PATH = VariancePreserving.from_config(
    {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        # No trace of the videos is left at the last time, so pure noise is exactly where the ODE starts.
        "rescale_betas_zero_snr": True,
    }
)
GRID = SolverGrid(PATH, 20)
F = ConsistencyFunction()

# Mean and deviation of the appearance, a channel: the videos are dull and alike, the pictures bright and
# varied.
VIDEO = torch.tensor([[-0.6, 0.3], [0.4, 0.4]])
PICTURE = torch.tensor([[0.8, 0.9], [-0.5, 0.8]])
# Deviation of each temporal frequency (1, 2, 3 half waves) of the motion, a channel.
MOTION = torch.tensor([[1.2, 0.8, 0.5], [0.9, 1.0, 0.6]])


def temporal_basis() -> Tensor:
    """The orthonormal cosine basis over the frames, (FRAMES, FRAMES): row 0 is constant, the others sum to
    0."""
    k, t = torch.meshgrid(torch.arange(FRAMES), torch.arange(FRAMES), indexing="ij")
    rows = torch.cos(math.pi * k * (t + 0.5) / FRAMES) * math.sqrt(2 / FRAMES)
    rows[0] /= math.sqrt(2)
    return rows


BASIS = temporal_basis()


def analyse(z: Tensor) -> Tensor:
    """Clips (B, 2, T, 1, 1) -> coefficients (B, 2, T); coefficient 0 is sqrt(T) times the appearance."""
    return z[..., 0, 0] @ BASIS.T


def synthesise(coefficients: Tensor) -> Tensor:
    """Coefficients (B, 2, T) -> clips (B, 2, T, 1, 1)."""
    return (coefficients @ BASIS)[..., None, None]


class Gaussian(NamedTuple):
    """A distribution of clips: mean and deviation of every coefficient, both (2, T)."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, appearance: Tensor) -> Gaussian:
        level, spread = (math.sqrt(FRAMES) * column for column in appearance.T)
        mean = torch.cat([level[:, None], torch.zeros_like(MOTION)], 1)
        return cls(mean, torch.cat([spread[:, None], MOTION], 1))

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """-> clips (count, 2, T, 1, 1)"""
        return synthesise(self.mean + self.deviation * torch.randn(count, *self.mean.shape, generator=rng))

    def denoise(self, z: Tensor, t: Tensor) -> Denoised:
        """The exact teacher: E[x0 | z_t], affine in z."""
        alpha, sigma = PATH.alpha(t)[:, None, None], PATH.sigma(t)[:, None, None]
        gain = alpha * self.deviation**2 / ((alpha * self.deviation) ** 2 + sigma**2)
        x0 = synthesise(self.mean + gain * (analyse(z) - alpha * self.mean))
        return Denoised(x0, (z - expand(PATH.alpha(t), z) * x0) / expand(PATH.sigma(t), z))

    def flow(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact probability-flow ODE from z at t to s: each coefficient keeps its number of
        deviations."""

        def moments(r: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = PATH.alpha(r)[:, None, None], PATH.sigma(r)[:, None, None]
            return alpha * self.mean, ((alpha * self.deviation) ** 2 + sigma**2).sqrt()

        (mean_t, deviation_t), (mean_s, deviation_s) = moments(t), moments(s)
        return synthesise(mean_s + deviation_s / deviation_t * (analyse(z) - mean_t))


VIDEOS, PICTURES = Gaussian.of(VIDEO), Gaussian.of(PICTURE)


class Student(nn.Module):
    """x0(z, t) = gain_t z + bias_t in the cosine basis, of the teacher's form and with the teacher's
    numbers."""

    def __init__(self) -> None:
        super().__init__()
        t = GRID.timesteps
        zeros, ones = torch.zeros(len(t), 2, FRAMES), torch.ones(len(t), 2, FRAMES)
        bias = analyse(VIDEOS.denoise(synthesise(zeros), t).x0)
        self.bias = nn.Parameter(bias)
        self.gain = nn.Parameter(analyse(VIDEOS.denoise(synthesise(ones), t).x0) - bias)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """f(z, t), (B, 2, T, 1, 1); at t = 0 it is z, whatever x0 says."""
        index = torch.searchsorted(GRID.timesteps, t)
        return F(z, t, synthesise(self.gain[index] * analyse(z) + self.bias[index]))


class Discriminator(nn.Module):
    """Single frames x (N, 2) at time t (N,) -> logits: a weighted sum of the features x and x^2.

    It can tell frames by the mean and the spread of their channels, and knows neither motion nor clips.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(GRID.steps, 4))
        self.bias = nn.Parameter(torch.zeros(GRID.steps))

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x, x**2], 1)

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        index = torch.searchsorted(GRID.timesteps, t)
        return (self.weight[index] * features).sum(1) + self.bias[index]


def frame_of(clips: Tensor, rng: torch.Generator) -> Tensor:
    """One frame of each clip, (B, 2)."""
    index = torch.randint(FRAMES, (len(clips),), generator=rng)
    return clips[torch.arange(len(clips)), :, index, 0, 0]


def distil(motion: str, adversary: bool, steps: int = 400) -> Student:
    """Consistency distillation as the paper has it, with an averaged target."""
    rng = torch.Generator().manual_seed(0)
    phi, apart, game = motion_representation(motion, 2), distance("pseudo_huber"), AdversarialLoss("hinge")
    student, judge = Student(), Discriminator()
    target = copy.deepcopy(student)
    learn = torch.optim.Adam(student.parameters(), betas=(0.5, 0.99))
    judging = torch.optim.Adam(judge.parameters(), betas=(0.0, 0.99))
    for step in range(steps):
        for optimizer, rate in ((learn, 0.02), (judging, 0.05)):
            optimizer.param_groups[0]["lr"] = rate * math.cos(0.5 * math.pi * step / steps)
        z0 = VIDEOS.draw(BATCH, rng)
        t, s = GRID.draw(BATCH, rng)
        z_t = PATH.diffuse(z0, torch.randn(z0.shape, generator=rng), t)
        z_s = ddim_step(PATH, VIDEOS.denoise(z_t, t), t, s)
        made = student(z_t, t)
        with torch.no_grad():
            aim = phi(target(z_s, s))
        loss = apart(phi(made), aim)
        if adversary:
            fake = frame_of(made, rng)
            loss = loss + 0.3 * game.generator(judge(judge.features(fake), t))
        learn.zero_grad()
        loss.backward()
        learn.step()
        if adversary:
            real = judge.features(frame_of(PICTURES.draw(BATCH, rng), rng)).requires_grad_()
            fake = judge.features(fake.detach()).requires_grad_()
            logits = judge(real, t), judge(fake, t)
            cost = game.discriminator(*logits) + gradient_penalty(logits, [real, fake])
            judging.zero_grad()
            cost.backward()
            judging.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
    return target


class Outcome(NamedTuple):
    """One-step clips of a student against the ODE's from the same noise."""

    motion_error: float  # root mean square over the motion's coefficients, relative to the ODE's own
    appearance_error: float  # the same over the appearance, relative to its deviation
    level: Tensor  # (2,) mean of the appearance, a channel
    spread: Tensor  # (2,) its deviation


@torch.no_grad()
def judge_clips(clips: Tensor, exact: Tensor) -> Outcome:
    got, meant = analyse(clips), analyse(exact)
    wrong = (got - meant).square()
    motion = (wrong[..., 1:].mean() / meant[..., 1:].square().mean()).sqrt()
    appearance = (wrong[..., 0].mean() / meant[..., 0].var(0).mean()).sqrt()
    looks = got[..., 0] / math.sqrt(FRAMES)
    return Outcome(float(motion), float(appearance), looks.mean(0), looks.std(0))


def one_step(student: Student) -> Outcome:
    noise = torch.randn(4096, 2, FRAMES, 1, 1, generator=torch.Generator().manual_seed(1))
    last, zero = (torch.full((len(noise),), t) for t in (999, 0))
    with torch.no_grad():
        return judge_clips(student(noise, last), VIDEOS.flow(noise, last, zero))


@pytest.fixture(scope="module")
def lcm() -> Outcome:
    return one_step(distil("raw", adversary=False))


@pytest.fixture(scope="module")
def motion_only() -> Outcome:
    return one_step(distil("difference", adversary=False))


@pytest.fixture(scope="module")
def mcm() -> Outcome:
    return one_step(distil("difference", adversary=True, steps=700))  # a game settles later than a distance


def test_the_flow_makes_clips_of_the_videos_distribution():
    """The formula is the ODE: it maps noise to the data's moments, and composes."""
    noise = torch.randn(4096, 2, FRAMES, 1, 1, generator=torch.Generator().manual_seed(2))
    last, middle, zero = (torch.full((len(noise),), t) for t in (999, 500, 0))
    clips = VIDEOS.flow(noise, last, zero)
    found = analyse(clips)
    torch.testing.assert_close(found.mean(0), VIDEOS.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(found.std(0), VIDEOS.deviation, atol=0, rtol=0.05)
    twice = VIDEOS.flow(VIDEOS.flow(noise, last, middle), middle, zero)
    torch.testing.assert_close(twice, clips, atol=1e-4, rtol=1e-4)


def test_the_untrained_student_has_neither():
    """It starts as the teacher, whose one-step answer is the mean clip: no motion, one look for all."""
    start = one_step(Student())
    assert start.motion_error > 0.9
    assert start.appearance_error > 0.9


def test_lcm_finds_motion_and_appearance(lcm: Outcome):
    assert lcm.motion_error < 0.12
    assert lcm.appearance_error < 0.12
    torch.testing.assert_close(lcm.level, VIDEO[:, 0], atol=0.05, rtol=0)
    torch.testing.assert_close(lcm.spread, VIDEO[:, 1], atol=0, rtol=0.15)


def test_mcm_without_its_discriminator_finds_motion_only(motion_only: Outcome):
    start = one_step(Student())
    assert motion_only.motion_error < 0.12
    assert motion_only.appearance_error > 0.9
    # Not merely wrong: the frame difference never touched it.
    torch.testing.assert_close(motion_only.level, start.level, atol=0.02, rtol=0)
    torch.testing.assert_close(motion_only.spread, start.spread, atol=0.02, rtol=0)


def test_mcm_finds_the_teachers_motion_and_the_pictures_appearance(mcm: Outcome):
    assert mcm.motion_error < 0.12
    torch.testing.assert_close(mcm.level, PICTURE[:, 0], atol=0.15, rtol=0)
    torch.testing.assert_close(mcm.spread, PICTURE[:, 1], atol=0, rtol=0.2)


def test_frames_on_top_of_lcm_conflict():
    """The same adversary beside the raw representation: the consistency loss holds on to the poor frames."""
    both = one_step(distil("raw", adversary=True))
    assert (both.level - VIDEO[:, 0]).abs().max() < 0.15
    assert (both.level - PICTURE[:, 0]).abs().min() > 0.5
    assert (both.spread < 0.6 * PICTURE[:, 1]).all()
