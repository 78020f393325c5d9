"""The judge: its shapes, the arithmetic of a verdict, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mcm.pocket import world
from mcm.pocket.judge import Judge, verdict
from mcm.pocket.world import QUESTIONS, Spec


def test_questions_are_those_of_the_labels() -> None:
    assert list(world.spec("judge", 0).labels) == list(QUESTIONS)
    for i in range(50):
        assert all(0 <= answer < QUESTIONS[q] for q, answer in world.spec("judge", i).labels.items())


@pytest.mark.parametrize("frames", [4, 8])
def test_logits_of_every_question(frames: int) -> None:
    torch.manual_seed(0)
    judge = Judge().eval()
    video = torch.rand(3, 3, frames, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        logits = judge(video)
        alone = judge(video[1:2])
    assert {q: tuple(a.shape) for q, a in logits.items()} == {q: (3, n) for q, n in QUESTIONS.items()}
    for q in QUESTIONS:  # group norms, no batch statistics: a clip is judged by itself
        torch.testing.assert_close(alone[q][0], logits[q][1], atol=1e-5, rtol=1e-4)


class Stub:
    """A judge whose word is written in the clip's first pixels: number `q` of QUESTIONS in pixel q."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, video: Tensor) -> dict[str, Tensor]:
        self.batches.append(len(video))
        said = video[:, 0, 0, 0, : len(QUESTIONS)].long()
        return {q: F.one_hot(said[:, i], n).float() for i, (q, n) in enumerate(QUESTIONS.items())}


def answered(specs: list[Spec], wrong: dict[int, set[str]]) -> Tensor:
    """Clips that say what their specs say, except for the questions `wrong` of some."""
    videos = torch.zeros(len(specs), 3, 1, 8, 8)
    for i, s in enumerate(specs):
        for place, (question, classes) in enumerate(QUESTIONS.items()):
            off = int(question in wrong.get(i, ()))
            videos[i, 0, 0, 0, place] = (s.labels[question] + off) % classes
    return videos


def test_verdict_counts_what_is_right() -> None:
    specs = [world.spec("judge", i) for i in range(7)]
    wrong = {1: {"action"}, 2: {"top"}, 3: {"bottom", "scene"}, 5: {"top", "bottom", "camera"}}
    judge = Stub()
    found = verdict(judge, answered(specs, wrong), specs, batch=3)  # pyright: ignore[reportArgumentType]
    assert judge.batches == [3, 3, 1]
    assert list(found) == [*QUESTIONS, "colours"]
    assert found["action"].tolist() == [1, 0, 1, 1, 1, 1, 1]
    assert found["top"].tolist() == [1, 1, 0, 1, 1, 0, 1]
    assert found["bottom"].tolist() == [1, 1, 1, 0, 1, 0, 1]
    assert found["scene"].tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert found["camera"].tolist() == [1, 1, 1, 1, 1, 0, 1]
    assert found["colours"].tolist() == [1, 1, 0, 0, 1, 0, 1]  # both colours, or it does not count
    assert float(found["action"].mean()) == pytest.approx(6 / 7)


def test_a_clip_is_judged_by_its_own_spec() -> None:
    specs = [world.spec("judge", i) for i in range(24)]
    videos = answered(specs, {})
    right = verdict(Stub(), videos, specs, batch=5)  # pyright: ignore[reportArgumentType]
    assert all(bool(part.all()) for part in right.values())
    shifted = verdict(Stub(), videos, specs[1:] + specs[:1], batch=5)  # pyright: ignore[reportArgumentType]
    assert float(shifted["action"].mean()) < 0.6


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_says_the_same(tmp_path: Path, half: bool) -> None:
    torch.manual_seed(1)
    judge = Judge().eval()
    state = {k: v.half() if half else v for k, v in judge.state_dict().items()}
    save_file(state, tmp_path / "judge.safetensors")
    back = Judge.load(tmp_path / "judge.safetensors")
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())
    assert all(p.dtype == torch.float32 for p in back.parameters())
    video = torch.rand(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        one, two = judge(video), back(video)
    for q in QUESTIONS:
        torch.testing.assert_close(two[q], one[q], atol=5e-3 if half else 0, rtol=0)


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    save_file({"body.0.weight": torch.zeros(1)}, tmp_path / "judge.safetensors")
    with pytest.raises(RuntimeError):
        Judge.load(tmp_path / "judge.safetensors")
