"""Exports, loaded by a program that has diffusers and peft but not mcm: the same noise must make the same frames."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_students import outside, shown, tiny_student, whole_teacher

import mcm
from mcm import export as module
from mcm.card import StudentCard
from mcm.diffusion.paths import path_from_config
from mcm.errors import UserError
from mcm.generate import generate, load_maker
from mcm.samplers.scheduler import diffusers_scheduler

EXPORTS = [
    ("animatediff", "diffusers"),
    ("animatediff", "peft"),
    ("animatediff", "merged"),
    ("animatediff", "comfyui"),
    ("animatediff-adapter", "diffusers"),
    ("animatediff-adapter", "merged"),
    ("animatediff-full", "merged"),
    ("animatediff-euler", "merged"),
    ("modelscope", "peft"),
    ("modelscope", "merged"),
    ("modelscope-full", "merged"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teachers/ and students/ of both families."""
    root = tmp_path_factory.mktemp("exports")
    for family, layout in (("animatediff", "motion"), ("animatediff", "adapter"), ("modelscope", "motion")):
        name = "animatediff-adapter" if layout == "adapter" else family
        teacher = whole_teacher(root / "teachers" / name, family, layout)
        targets = "attention" if layout == "adapter" else "all"
        tiny_student(root / "students" / name, teacher, targets=targets)
        if layout == "motion":
            tiny_student(root / "students" / f"{name}-full", teacher, kind="full")
    euler: dict[str, Any] = {"sampler": {"name": "euler"}, "timestep_scaling": None}
    tiny_student(root / "students" / "animatediff-euler", root / "teachers" / "animatediff", **euler)
    return root


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, dict[str, np.ndarray]]:
    """What the other program makes of every export, in one process: importing diffusers takes it longest."""
    jobs = {}
    for student, kind in EXPORTS:
        folder = mcm.export(place / "students" / student, kind, place / "out" / f"{student}-{kind}")
        teacher = place / "teachers" / student.removesuffix("-euler")
        jobs[f"{student}-{kind}"] = {"folder": str(folder), "teacher": str(teacher)}
    return outside(jobs, place)


@pytest.mark.parametrize(("student", "kind"), EXPORTS)
def test_the_same_frames_without_mcm(
    student: str, kind: str, place: Path, made: dict[str, dict[str, np.ndarray]]
) -> None:
    maker = load_maker(place / "students" / student)
    for steps in (1, 4):
        wanted, found = shown(maker, steps), made[f"{student}-{kind}"][f"steps{steps}"]
        assert found.shape == wanted.shape == (4, 16, 16, 3)
        assert float(np.abs(found - wanted).max()) <= 1e-4
        assert ((wanted > 0.01) & (wanted < 0.99)).mean() > 0.5  # not all black or white, whatever made it


@pytest.mark.parametrize("student", ["animatediff", "animatediff-adapter", "modelscope"])
def test_the_adapters_are_seen(student: str, place: Path) -> None:
    """Without them the frames would differ by much more than the tests above allow."""
    maker = load_maker(place / "students" / student)
    before = shown(maker, 4)
    assert maker.student is not None
    for weight in maker.student.trainable().values():
        weight.data.zero_()
    assert float(np.abs(shown(maker, 4) - before).max()) > 0.05
