"""The laboratory's suite: every system of the paper's table on both pocket teachers, the picture styles, the ablations.

Same budget (updates, clips an update, adapters' rank) and four tuning trials for every system of the table; picture
styles, the two stages among them, have a second budget after it, ablations and the larger size a quarter of one. The
paper is arXiv 2406.06890. All but AnimateDiff-Lightning learn from the same broadcast clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcm.bench.suite import GUIDANCE, Scorer, Suite, System
from mcm.models.bases import TEACHER
from mcm.pocket.world import STYLES, held_out_prompts, one_of_each
from mcm.pocket.zoo import LOOKS

TEACHERS = ("pocket-animatediff", "pocket-modelscope")
RATES = ({"optim.lr": 5e-4}, {"optim.lr": 1e-3}, {"optim.lr": 2e-3}, {"optim.lr": 4e-3})
SCALES = tuple({GUIDANCE: scale} for scale in (1.5, 2.0, 3.0, 4.5))
# What an adversary needs besides a rate: how strong it is.
WEIGHTS = (
    {"optim.lr": 5e-4, "method.adversarial_weight": 0.1}, {"optim.lr": 1e-3, "method.adversarial_weight": 0.1},
    {"optim.lr": 1e-3, "method.adversarial_weight": 0.3}, {"optim.lr": 2e-3, "method.adversarial_weight": 0.1},
)  # fmt: skip
# To another look the way is farther than to the film's own.
LOOK_WEIGHTS = (
    {"optim.lr": 1e-4, "method.adversarial_weight": 1.0}, {"optim.lr": 1e-4, "method.adversarial_weight": 2.0},
    {"optim.lr": 2.5e-4, "method.adversarial_weight": 1.0}, {"optim.lr": 2.5e-4, "method.adversarial_weight": 2.0},
)  # fmt: skip
# Without a distillation beside it its weight changes nothing: AdamW does not see the scale of a lone loss.
LOOK_RATES = ({"optim.lr": 2.5e-5}, {"optim.lr": 5e-5}, {"optim.lr": 1e-4}, {"optim.lr": 2.5e-4})
# A progressive student learns guidance at the rate, and all else, with an adversary alone, at a share of it: where the
# discriminator cannot tell yet, that is how far it is shaken.
SHARES = tuple({"optim.lr": 1e-3, "method.adversarial_rate": share} for share in (0.003, 0.01, 0.03, 0.1))
REPRESENTATIONS = (
    "raw", "difference", "low", "high", "local-correlation", "global-correlation", "scaled-correlation",
    "learnable-heavy",
)  # fmt: skip
LARGE = {"data.frames": 16, "data.size": [128, 128], "data.laboratory_clips": 512}  # a run of 50 updates sees 400


def systems() -> list[System]:
    """All of them, the ones that others are like first."""
    found: list[System] = []
    for teacher in TEACHERS:
        found += _table(teacher) + _styles(teacher) + _resampled(teacher)
    return found + _ablations("pocket-modelscope") + [one for teacher in TEACHERS for one in _large(teacher)]


def _table(teacher: str) -> list[System]:
    """The paper's table on a teacher."""
    rows = [
        System(teacher, "dpm++", sampler="dpm++", trials=SCALES, steps=(25,), trial_steps=10, part="25"),
        System(teacher, "dpm++", sampler="dpm++", trials=SCALES, table=True),
        System(teacher, "ddim", sampler="ddim", trials=SCALES, table=True),
        System(teacher, "lcm", {"method.name": "lcm"}, trials=RATES, table=True),
        System(teacher, "lcm", {"method.name": "lcm"}, like=f"{teacher}.lcm", seed=1, table=True),
        System(teacher, "lcm+frames", {"method.name": "lcm", "method.adversary": "video"}, trials=WEIGHTS, table=True),
        System(teacher, "mcm", trials=WEIGHTS, table=True),
        System(teacher, "mcm", like=f"{teacher}.mcm", seed=1, table=True),
    ]
    if teacher == "pocket-animatediff":  # both methods train spatial and temporal layers apart
        rows.append(System(teacher, "animatelcm", {"method.name": "animatelcm"}, trials=RATES, table=True))
        # A progressive method's student is made for one number of steps: four of them, each of a whole budget.
        # Over three bases, as its paper does, on clips that each base makes of the same captions.
        name, bases = "animatediff-lightning", (TEACHER, *LOOKS.values())
        shared = {"method.bases": bases, "data.videos": None, "data.prompts": "pocket:broadcast"}
        shared["optim.discriminator_lr"] = 5e-4  # a whole encoder's, not that of heads
        for steps in (4, 8, 2, 1):
            settings = {"method.name": name, "method.final_steps": steps, **shared}
            rows.append(System(teacher, name, settings, trials=SHARES, steps=(steps,), part=str(steps), table=True))
    return rows


def _styles(teacher: str) -> list[System]:
    """Frames that look like pictures: MCM with an adversary of pictures from MCM's student on, and, for studio, the
    paper's two stages, LCM and then the adversary alone. So all have had two budgets; the trials are of the second."""

    def pictures(style: str) -> dict[str, Any]:
        # A look that the film does not have is met in the student's own clips alone: of as many steps as it will take.
        own = {"method.trajectory": "multi-step", "method.trajectory_steps": 8, "method.generated_probability": 0.75}
        # The student that it starts from makes good clips already.
        own |= {"method.generated_ramp": 0.0, "method.adversarial_start": 0.0}
        # A look must not cost what captions say. A discriminator that learns both has twice the rate (docs/log.md).
        own |= {"method.matching_weight": 1.0, "optim.discriminator_lr": 4e-3}
        return {"method.adversary": "pictures", "data.images": f"pocket:{style}", **own}

    rows = []
    # A look decays with every step, and the action with it: trials are judged where most of both is lost.
    judged: dict[str, Any] = {"by": "fid", "trial_steps": 8}
    for style in STYLES:
        tuned = {"trials": LOOK_WEIGHTS, **judged}
        how: Mapping[str, Any] = tuned if style == "studio" else {"like": f"{teacher}.mcm+studio"}
        rows.append(System(teacher, f"mcm+{style}", pictures(style), after=f"{teacher}.mcm", style=style, **how))
    second = {"method.name": "frames", **pictures("studio")}
    alone = System(teacher, "two-stage+studio", second, after=f"{teacher}.lcm", trials=LOOK_RATES, **judged)
    return [*rows, alone]


def _resampled(teacher: str) -> list[System]:
    """The students of two systems, sampled with some of their noise kept; in one step there is none to keep."""
    return [
        System(teacher, f"{method}-tcd", sampler="tcd", of=f"{teacher}.{method}", steps=(2, 4, 8))
        for method in ("lcm", "mcm")
    ]


def _ablations(teacher: str) -> list[System]:
    """What each part of MCM is worth, at a quarter of the budget beside MCM at a quarter."""
    parts: dict[str, dict[str, Any]] = {"mcm": {}}
    parts |= {f"motion-{name}": {"method.motion": name} for name in REPRESENTATIONS}
    parts |= {f"lambda-{share:g}": {"method.generated_probability": share} for share in (0.0, 0.25, 0.75, 1.0)}
    parts["multi-step"] = {"method.trajectory": "multi-step"}
    parts["no-adversary"] = {"method.adversary": "none"}
    parts["studio-pictures"] = {"method.adversary": "pictures", "data.images": "pocket:studio"}
    parts |= {f"weight-{weight:g}": {"method.adversarial_weight": weight} for weight in (0.03, 1.0, 3.0)}
    like = f"{teacher}.mcm"
    return [
        # `last` goes over what was found for MCM, which may set the same weight.
        System(teacher, f"quarter-{name}", like=like, last=settings, share=0.25, steps=(1, 4))
        for name, settings in parts.items()
    ]


def _large(teacher: str) -> list[System]:
    """Twice the size and twice the frames that the teacher was trained at: eight times the work and more, so fewer
    clips, and the teacher's 25 steps at its usual guidance. Beside the student that is distilled so is the table's, of
    four times the updates, sampled so."""
    shared: dict[str, Any] = {"shape": (16, (128, 128)), "count": 96}
    return [
        System(teacher, "dpm++-large", sampler="dpm++", steps=(25,), part="25", **shared),
        System(teacher, "dpm++-large", sampler="dpm++", like=f"{teacher}.dpm++", steps=(4,), **shared),
        System(teacher, "mcm-small-to-large", of=f"{teacher}.mcm", steps=(4,), **shared),
        System(teacher, "mcm-large", LARGE, like=f"{teacher}.mcm", share=0.25, steps=(4,), **shared),
    ]


def scorer(count: int, tuning: bool, out: Path) -> Scorer:
    from mcm.pocket.scoring import Scoring

    return Scoring(count, 1024, tuning, kept=out / "kept")


PROMPTS = held_out_prompts()
SUITE = Suite(
    "pocket", tuple(systems()), scorer, shown=tuple(PROMPTS[i] for i in one_of_each(PROMPTS)),
    shared={"data.laboratory_clips": 1024, "training.save_every": 50, "training.keep": 1},
)  # fmt: skip
