"""Latents kept on disk: the same after a round trip, and never taken for others."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mcm.data.cache import LatentSet, fingerprint
from mcm.data.encode import as_pixels
from mcm.data.sources import Clip, VideoFolder
from mcm.errors import UserError

MADE = {"codec": "abc", "size": [16, 32], "frames": 4, "stride": 2, "dtype": "float16"}


class Halves:
    """A codec: mean of blocks of 8 x 8, and one channel more. Notes the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, video: Tensor) -> Tensor:
        self.batches.append(len(video))
        small = F.avg_pool3d(video, (1, 8, 8))
        return torch.cat([small, small.mean(1, keepdim=True)], 1)


def clips(count: int, rng: torch.Generator) -> list[Clip]:
    videos = torch.rand(count, 3, 4, 16, 32, generator=rng) * 2 - 1
    return [Clip(video, f"caption {k}", f"{k}.mp4") for k, video in enumerate(videos)]


@pytest.mark.parametrize(("count", "batches"), [(7, [3, 3, 1]), (6, [3, 3]), (1, [1])])
def test_a_set_is_what_the_codec_made(rng, count, batches):
    source, codec, done = clips(count, rng), Halves(), []
    made = LatentSet.build(source, codec, MADE, batch=3, keep_frames=2, progress=done.append)
    assert codec.batches == batches
    assert done[-1] == count
    assert made.z.shape == (count, 4, 4, 2, 4)
    assert made.z.dtype == torch.float16
    assert made.frames is not None
    assert made.frames.shape == (count, 2, 3, 16, 32)
    for k, clip in enumerate(source):
        assert torch.allclose(made.z[k].float(), Halves().encode(clip.video[None])[0], atol=1e-3)
        assert torch.equal(made.frames[k], as_pixels(clip.video)[[0, 3]].permute(0, 3, 1, 2))
        assert (made[k].caption, made[k].name) == (clip.caption, clip.name)


@pytest.mark.parametrize("keep", [0, 3])
def test_round_trip(tmp_path, rng, keep):
    made = LatentSet.build(clips(5, rng), Halves(), MADE, keep_frames=keep, dtype=torch.float32)
    made.save(tmp_path / "new" / "cache")
    back = LatentSet.load(tmp_path / "new" / "cache", dict(reversed(MADE.items())))
    assert torch.equal(back.z, made.z)
    assert back.z.dtype == torch.float32
    assert (back.captions, back.names, back.made_with) == (made.captions, made.names, MADE)
    assert (back.frames is None) == (keep == 0)
    if made.frames is not None and back.frames is not None:
        assert torch.equal(back.frames, made.frames)
    assert sorted(p.name for p in (tmp_path / "new" / "cache").iterdir()) == [
        "index.json",
        "latents.safetensors",
    ]


def test_a_film_that_cannot_be_read_is_left_out_not_doubled(tmp_path, make_film):
    for name in "ab":
        make_film(tmp_path / f"{name}.mp4", frames=8)
        (tmp_path / f"{name}.txt").write_text(name)
    source = VideoFolder(tmp_path, 4, (16, 32))
    (tmp_path / "a.mp4").write_bytes(b"gone bad")
    assert LatentSet.build(source, Halves(), MADE).names == ["b.mp4"]
    assert source.report.dropped[0][0] == "a.mp4"


def test_other_settings_are_refused_by_name(tmp_path, rng):
    LatentSet.build(clips(2, rng), Halves(), MADE).save(tmp_path)
    with pytest.raises(UserError, match="stride 2, asked for 8") as caught:
        LatentSet.load(tmp_path, {**MADE, "stride": 8})
    assert "size" not in str(caught.value)
    with pytest.raises(UserError, match="crop None, asked for 'random'"):
        LatentSet.load(tmp_path, {**MADE, "crop": "random"})


def test_the_fingerprint_sees_every_value_and_no_order():
    assert fingerprint(MADE) == fingerprint(dict(reversed(MADE.items())))
    others = [{**MADE, key: "other"} for key in MADE] + [{**MADE, "more": None}, {}]
    assert len({fingerprint(made) for made in [MADE, *others]}) == len(others) + 1


def test_unfinished_and_damaged_sets_are_refused(tmp_path, rng):
    LatentSet.build(clips(2, rng), Halves(), MADE).save(tmp_path)
    latents, index = tmp_path / "latents.safetensors", tmp_path / "index.json"
    whole, text = latents.read_bytes(), index.read_text()
    spoiled = json.loads(text)
    spoiled["captions"].append("one too many")
    for file, data, words in (
        (latents, whole[:-10], "missing or damaged"),
        (latents, b"", "missing or damaged"),
        (index, b"{", "index.json is damaged"),
        (index, b"[]", "index.json is damaged"),
        (index, json.dumps(spoiled).encode(), "2 latents for 3 captions"),
        (index, text.replace('"version": 1', '"version": 99').encode(), "version 99"),
        (index, text.replace('"count": 2', '"count": "x"').encode(), "2 latents for 2 captions"),
    ):
        file.write_bytes(data)
        with pytest.raises(UserError, match=words) as caught:
            LatentSet.load(tmp_path, MADE)
        assert "\n" not in str(caught.value)
        latents.write_bytes(whole)
        index.write_text(text)
    latents.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        LatentSet.load(tmp_path, MADE)
    index.unlink()
    with pytest.raises(UserError, match="no finished latents"):
        LatentSet.load(tmp_path, MADE)


def test_saving_again_never_leaves_an_index_of_other_latents(tmp_path, rng, monkeypatch):
    """If writing fails half way, the folder counts as unfinished: the old index has gone first."""
    made = LatentSet.build(clips(2, rng), Halves(), MADE)
    made.save(tmp_path)

    def full(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("mcm.data.cache.write_bytes", full)
    with pytest.raises(UserError, match="full"):
        made.save(tmp_path)
    with pytest.raises(UserError, match="no finished latents"):
        LatentSet.load(tmp_path, MADE)


def test_what_cannot_be_made(tmp_path, rng):
    class Huge(Halves):
        def encode(self, video: Tensor) -> Tensor:
            return super().encode(video) + 1e6

    with pytest.raises(UserError, match=r"0\.mp4.*not finite in torch\.float16"):
        LatentSet.build(clips(2, rng), Huge(), MADE)
    with pytest.raises(UserError, match="no clips"):
        LatentSet.build([], Halves(), MADE)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        LatentSet.build(clips(2, rng), Halves(), MADE).save(tmp_path / "file" / "cache")
