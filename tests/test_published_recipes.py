"""The recipes of the published runs hold the official settings, and those of new teachers fit their networks."""

from __future__ import annotations

import importlib

import pytest

from mcm.recipe import apply_overrides
from mcm.recipes import load_recipe, recipes

PUBLISHED = {
    "animatediff-webvid": None, "animatediff-laion": "laion-aesthetic", "modelscope-webvid": None,
    "modelscope-laion": "laion-aesthetic", "modelscope-anime": "anime", "modelscope-realistic": "realistic",
    "modelscope-3d-cartoon": "3d-cartoon",
}  # fmt: skip
REASONED = {"wan-1.3b": (4, 81), "cogvideox-2b": (8, 49)}  # frames less one are a multiple; the most


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_run_has_the_official_settings(name: str) -> None:
    """Frozen: these are facts of the paper's scripts, not defaults to be tuned."""
    run = load_recipe(name)
    method, optim, training = run.method, run.optim, run.training
    assert run.name == name
    assert (method.name, method.solver_steps, method.guidance_min, method.guidance_max) == ("mcm", 50, 5, 15)
    assert (method.sigma_data, method.timestep_scaling, method.huber_c) == (0.5, 4, 1e-3)
    assert (method.motion, method.head_decay, method.target_decay) == ("learnable", 0.95, None)
    assert (method.adversarial_loss, method.adversarial_weight, method.gradient_penalty) == ("hinge", 1, 1e-5)
    assert (method.frames_picked, method.generated_probability) == (2, 0.5)
    assert (run.student.kind, run.student.rank, run.student.alpha, run.student.targets) == ("lora", 64, 64, "all")
    assert (optim.lr, optim.discriminator_lr, optim.weight_decay, optim.clip) == (5e-6, 1e-4, 0, 10)
    assert (optim.betas, optim.warmup, optim.schedule) == ((0.9, 0.999), 500, "cosine")
    assert (training.batch * training.accumulation, training.updates) == (128, 38_500)
    assert (run.data.frames, run.data.stride) == (16, 8)
    assert run.discriminator.backbone == "facebook/dinov2-small"
    pictures = PUBLISHED[name]
    assert run.data.images == (pictures and f"./data/{pictures}")
    assert method.adversary == ("pictures" if pictures else "video")
    assert ("modelscope" in name) == ("text-to-video-ms" in run.teacher)


@pytest.mark.parametrize("name", REASONED)
def test_a_new_teachers_clips_fit_its_network(name: str) -> None:
    run = load_recipe(name)
    step, most = REASONED[name]
    assert run.data.frames is not None
    assert run.data.size is not None
    assert (run.data.frames - 1) % step == 0
    assert run.data.frames <= most
    assert all(side % 16 == 0 for side in run.data.size)
    assert run.method.guidance_max < 10


@pytest.mark.parametrize("name", [*PUBLISHED, *REASONED])
def test_a_recipe_says_its_command_data_cost_and_score(name: str) -> None:
    module = name.replace("-", "_").replace(".", "_")
    said = importlib.import_module(f"mcm.recipes.{module}").__doc__ or ""
    assert f"`mcm distill {name}`" in said
    for word in ("Teacher:", "Data:", "Cost: not measured here.", "Expected score:"):
        assert word in said
    changed = apply_overrides(load_recipe(name), {"data.videos": "elsewhere", "training.batch": "4"})
    assert (changed.data.videos, changed.training.batch) == ("elsewhere", 4)


def test_helpers_are_no_recipes() -> None:
    assert not [name for name in recipes() if name.startswith(("_", "-"))]
    assert set(PUBLISHED) | set(REASONED) <= recipes().keys()
