"""The card: the same after a trip through its file, strict when read, one home for each fact."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mcm import output
from mcm.card import VERSION, StudentCard
from mcm.errors import UserError


def made(**changes: Any) -> dict[str, Any]:
    return {
        "name": "s",
        "teacher": {"name": "t", "fingerprint": "0123456789abcdef" * 4},
        "family": "animatediff",
        "method": "mcm",
        "scheduler": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"},
        "sampler": {"name": "consistency", "original_steps": 50},
        "timestep_scaling": 4.0,
        "frames": 8,
        "size": [64, 48],
        "fps": 8,
        "weights": {"kind": "lora", "rank": 4, "alpha": 4.0, "file": "adapter_model.safetensors"},
        "provenance": {
            "recipe": {"optim": {"lr": 1e-5}},
            "versions": {"torch": "2.13.0", "mcm": None},
            "date": "2026-11-22T00:00:00+00:00",
            "updates": 10,
            "seed": 0,
        },
        **changes,
    }


def written(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps(made(**changes)), encoding="utf-8")
    return folder


def test_round_trip_from_every_place_that_leads_to_it(tmp_path: Path) -> None:
    card = StudentCard.model_validate(made())
    path = card.save(tmp_path / "run" / "student")
    for place in (path, path.parent, tmp_path / "run", str(tmp_path / "run")):
        assert StudentCard.load(place) == card
    assert [p.name for p in path.parent.iterdir()] == ["card.json"], "no temporary file stays behind"
    assert card.size == (64, 48)
    assert card.sampler_settings() == {"original_steps": 50, "timestep_scaling": 4.0}


def test_the_sampler_on_the_card_can_be_made(tmp_path: Path) -> None:
    from mcm.samplers import sampler

    card = StudentCard.load(written(tmp_path))
    assert sampler(card.sampler["name"], **card.sampler_settings()).name == "consistency"


def test_a_missing_card_says_where_and_what(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected one that holds a card.json"):
        StudentCard.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no student: expected a card.json, which `mcm distill`"):
        StudentCard.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": VERSION + 1}, f"is of version {VERSION + 1}, made by a newer mcm"),
        ({"framez": 8}, "unknown key \"framez\"; did you mean 'frames'?"),
        ({"weights": {"kind": "full", "fil": "a"}}, "unknown key \"weights.fil\"; did you mean 'file'?"),
        ({"frames": 0}, '"frames": Input should be greater than or equal to 1'),
        ({"size": [64, 0]}, '"size": expected whole numbers of 1 or more'),
        ({"teacher": {"name": "t", "fingerprint": "abc"}}, '"teacher.fingerprint"'),
        ({"sampler": {"original_steps": 50}}, '"sampler": expected a "name" among its keys'),
        ({"sampler": {"name": "c", "timestep_scaling": 10}}, "timestep_scaling stands in the card itself"),
        ({"scheduler": {}}, '"scheduler"'),
        ({"weights": {"kind": "lora", "file": "a.safetensors"}}, '"lora" weights have rank and alpha'),
        ({"weights": {"kind": "full", "file": "../a.safetensors"}}, "in the card's own folder"),
        ({"weights": {"kind": "full", "file": "a.bin"}}, "expected the name of a .safetensors file"),
    ],
)
def test_what_it_does_not_know_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        StudentCard.load(written(tmp_path, **changes))
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]"])
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged|is no student's card"):
        StudentCard.load(tmp_path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    content = made()
    del content["teacher"]["fingerprint"]
    (tmp_path / "card.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'"teacher.fingerprint" is missing'):
        StudentCard.load(tmp_path)


def test_it_cannot_be_changed() -> None:
    card = StudentCard.model_validate(made())
    with pytest.raises(ValidationError):
        card.frames = 9


def test_a_full_disk_leaves_the_old_card_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = StudentCard.load(written(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*card.json: the disk is full; free some space"):
        card.model_copy(update={"frames": 9}).save(tmp_path)
    assert StudentCard.load(tmp_path).frames == 8
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]


def test_a_whole_file_or_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.mp4"
    with pytest.raises(RuntimeError), output.whole(path) as part:  # noqa: PT012 (the block is what is tested)
        assert part.suffix == ".mp4"
        part.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with output.whole(path) as part:
        part.write_text("all")
    assert path.read_text() == "all"
