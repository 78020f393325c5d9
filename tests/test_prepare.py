"""mcm.prepare: what it finds, what it leaves out and says, what it writes, and training from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import ADAPTER, CAPTIONS, inside, make_material, recipe

import mcm
from mcm.data.prepared import PreparedClips, PreparedPictures
from mcm.data.readers import ClipReader, PictureReader
from mcm.data.video import read_clip, write_video
from mcm.encoding import made_with
from mcm.errors import UserError
from mcm.models.video import load_video_model

FILMS = 7
WHOLE = {"prepare.json", "listing.jsonl", "report.json", "samples.png", "index.json", "empty-text.safetensors"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """As `make_material` makes it, with more films: seven that can be used and one that cannot."""
    folder = make_material(tmp_path_factory.mktemp("material"))
    rng = np.random.default_rng(1)
    for k in range(3, FILMS):
        film = rng.integers(0, 256, (9, 24, 32, 3), dtype=np.uint8)
        write_video(folder / "clips" / f"film{k}.mp4", film, 8)
        (folder / "clips" / f"film{k}.txt").write_text(CAPTIONS[k % 3])
    return folder


def prepare(place: Path, out: Path, **settings):
    settings = {"frames": 4, "shard_size": 3, **settings}
    return mcm.prepare(place / "clips", out, place / "animatediff", **settings)


@pytest.fixture(scope="module")
def prepared(place, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "clips"
    prepare(place, out)
    return out


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def opened(place: Path, folder: Path) -> PreparedClips:
    model = load_video_model(place / "animatediff")
    return PreparedClips(folder, made_with(model, ClipReader(4, model.size, 1)))


def test_the_report_says_what_was_found_and_what_was_left_out(prepared):
    report = json.loads((prepared / "report.json").read_text())
    assert (report["found"], report["used"], report["shards"]) == (FILMS + 1, FILMS, 3)
    (left,) = report["dropped"]
    assert left["name"] == "broken.mp4"
    assert sum(report["left out"].values()) == 1
    assert report["sizes (H x W)"] == {"24x32": FILMS}
    assert report["codecs"] == {"h264": FILMS}
    assert report["frames per second"]["median"] == 8
    assert (report["seconds"]["least"], report["seconds"]["most"]) == (1.12, 1.38)  # 9 and 11 frames
    assert report["words of a caption"] == {"least": 4, "5 %": 4, "median": 4, "95 %": 4, "most": 4}
    assert inside(prepared) == WHOLE | {f"shard-{k:06d}.safetensors" for k in range(3)}
    assert Image.open(prepared / "samples.png").height > FILMS * 24


def test_what_is_read_is_what_the_teachers_networks_say(place, prepared):
    model = load_video_model(place / "animatediff")
    clips = opened(place, prepared)
    assert len(clips) == FILMS
    numbers = [0, 5, 6]
    films = [f"film{k}.mp4" for k in numbers]
    video = torch.stack([read_clip(place / "clips" / f, 4, model.size, stride=1, at=0.5) for f in films])
    torch.testing.assert_close(clips.latents(numbers).float(), model.codec.encode(video), atol=2e-3, rtol=2e-3)
    captions = [CAPTIONS[k % 3] for k in numbers]
    assert clips.said(numbers) == captions
    hidden, pooled = clips.texts(numbers)
    assert torch.equal(hidden, model.text(captions).hidden)
    assert torch.equal(pooled, model.text(captions).pooled)
    assert torch.equal(clips.empty_text()[0], model.text([""]).hidden)
    pixels = (video[1].clamp(-1, 1) + 1) * 127.5
    for k, frame in enumerate((0, 1, 2, 3)):
        assert (clips.frame(5, k).float() - pixels[:, frame]).abs().mean() < 6  # JPEG on noise
    assert list(clips.captions) == [CAPTIONS[k % 3] for k in range(FILMS)]


def test_training_from_it_is_training_from_the_films(place, prepared, tmp_path):
    """Without an adversary all that differs is how many clips were encoded at a time."""
    mcm.distill(recipe(place, method={"name": "mcm", "adversary": "none"}), tmp_path / "films")
    from_films = load_file(tmp_path / "films" / ADAPTER)
    made = recipe(place, method={"name": "mcm", "adversary": "none"}, data__videos=str(prepared))
    mcm.distill(made, tmp_path / "shards")
    from_shards = load_file(tmp_path / "shards" / ADAPTER)
    moved = sum(float(w.abs().sum()) for n, w in from_films.items() if "lora_B" in n)
    apart = sum(float((from_films[n] - w).abs().sum()) for n, w in from_shards.items() if "lora_B" in n)
    assert moved > 0
    assert apart < 0.02 * moved
    assert not (tmp_path / "shards" / "cache").exists()  # nothing is encoded twice
    sources = json.loads((tmp_path / "shards" / "sources.json").read_text())
    assert (sources[0]["what"], sources[0]["used"]) == ("prepared videos", FILMS)


def test_pictures_and_clips_for_the_adversary(place, prepared, tmp_path):
    report = mcm.prepare(place / "pictures", tmp_path / "pictures", place / "animatediff", images=True)
    assert (report["found"], report["used"], report["without a caption"]) == (3, 3, 3)
    model = load_video_model(place / "animatediff")
    pictures = PreparedPictures(tmp_path / "pictures", made_with(model, PictureReader(model.size)))
    assert pictures[1].image.shape == (3, *model.size)
    assert pictures[1].name == "picture1.png"
    assert torch.equal(pictures.pooled([0, 2]), model.text(["", ""]).pooled)
    for adversary in ("video", "pictures"):
        made = recipe(
            place, method={"name": "mcm", "adversary": adversary}, training__updates=1, data__videos=str(prepared),
            data__images=str(tmp_path / "pictures") if adversary == "pictures" else None,
        )  # fmt: skip
        assert mcm.distill(made, tmp_path / f"run-{adversary}").method == "mcm"


def test_again_does_nothing_and_a_missing_or_damaged_shard_is_made_anew(place, prepared, tmp_path, caplog):
    again = tmp_path / "again"
    shutil.copytree(prepared, again)
    times = {path: path.stat().st_mtime_ns for path in again.iterdir()}
    assert prepare(place, again)["used"] == FILMS
    assert {path: path.stat().st_mtime_ns for path in again.iterdir()} == times
    first, second = again / "shard-000000.safetensors", again / "shard-000001.safetensors"
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    prepare(place, again)
    assert shards(again) == shards(prepared)
    assert "shard-000001" in caplog.text
    assert "made anew" in caplog.text


def test_ranks_share_the_shards_and_the_last_one_finishes(place, prepared, tmp_path):
    first = prepare(place, tmp_path / "shared", rank=1, world=2)
    assert first == {"finished": False, "shards": 3, "made": 1, "rank": 1, "world": 2}
    with pytest.raises(UserError, match="not prepared to the end"):
        opened(place, tmp_path / "shared")
    assert prepare(place, tmp_path / "shared", rank=0, world=2)["finished"]
    assert shards(tmp_path / "shared") == shards(prepared)
    assert (tmp_path / "shared" / "index.json").read_bytes() == (prepared / "index.json").read_bytes()


def test_workers_make_the_same(place, prepared, tmp_path):
    prepare(place, tmp_path / "by-workers", workers=2)
    assert shards(tmp_path / "by-workers") == shards(prepared)


def test_a_source_that_changes_meanwhile_does_not_change_the_list(place, prepared, tmp_path):
    """The clip that is gone is named; the others stay what they were."""
    moved = tmp_path / "clips"
    shutil.copytree(place / "clips", moved)
    mcm.prepare(moved, tmp_path / "out", place / "animatediff", frames=4, shard_size=3, rank=1, world=2)
    (moved / "film0.mp4").unlink()
    shutil.copy(moved / "film1.mp4", moved / "a-new-one.mp4")
    report = mcm.prepare(moved, tmp_path / "out", place / "animatediff", frames=4, shard_size=3)
    assert {item["name"]: item["reason"] for item in report["dropped"]}["film0.mp4"] == "no such file"
    assert report["used"] == FILMS - 1


def test_killed_at_any_moment_it_ends_as_if_nothing_had_been(place, prepared, tmp_path):
    out = tmp_path / "killed"
    words = ["prepare", str(place / "clips"), "--teacher", str(place / "animatediff"), "--out", str(out)]
    words += ["--frames", "4", "--shard-size", "3", "--workers", "1"]
    # each time one file later: while there is only the list, and after the first shard
    for file in ("listing.jsonl", "shard-000000.safetensors"):
        run = subprocess.Popen([sys.executable, "-m", "mcm", *words], stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not (out / file).exists() and run.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    prepare(place, out)
    assert shards(out) == shards(prepared)
    assert inside(out) == inside(prepared)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data__frames": 5}, "made with frames 4, asked for 5"),
        ({"data__stride": 2}, "made with stride 1, asked for 2"),
        ({"teacher": "modelscope"}, "text encoder"),
    ],
)
def test_a_run_that_it_does_not_fit_is_refused(place, prepared, tmp_path, changed, said):
    if "teacher" in changed:
        changed = {"teacher": str(place / changed["teacher"])}
    with pytest.raises(UserError, match=said):
        mcm.distill(recipe(place, data__videos=str(prepared), **changed), tmp_path / "run")


def test_nan_in_a_shard_is_named_and_ends_the_run(place, prepared, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(prepared, bad)
    path = bad / "shard-000001.safetensors"
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    tensors["z"][0, 0, 0, 0, 0] = torch.nan
    save_file(tensors, path, about)
    clips = opened(place, bad)
    assert clips.latents([0]).isfinite().all()
    with pytest.raises(UserError, match=r"shard-000001.*latents of film\d.mp4 are NaN"):
        clips.latents([2, 3])


def test_what_is_no_prepared_folder(place, prepared, tmp_path):
    from mcm.data.open import open_videos

    with pytest.raises(UserError, match="holds prepared latents, no films"):
        open_videos(str(prepared), 4, (16, 16), 8)
    model = load_video_model(place / "animatediff")
    with pytest.raises(UserError, match="holds prepared videos: expected prepared images"):
        PreparedPictures(prepared, made_with(model, PictureReader(model.size)))
    for damage, said in (("cut", "bytes instead of"), ("gone", "is missing"), ("index", "is damaged")):
        bad = tmp_path / damage
        shutil.copytree(prepared, bad)
        shard = bad / "shard-000002.safetensors"
        if damage == "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        elif damage == "gone":
            shard.unlink()
        else:
            (bad / "index.json").write_text((bad / "index.json").read_text().replace('"frames": 4', '"frames": 5'))
        with pytest.raises(UserError, match=said):
            opened(place, bad)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stride": 2, "fps": 4.0}, "give one of them"),
        ({"images": True}, "images have no frames"),
        ({"keep_frames": 5}, "a clip has 4 frames"),
        ({"frames": 0}, '"frames": expected a whole number of at least 1'),
        ({"size": (7, 7)}, "7"),
        ({"rank": 2, "world": 2}, "expected a rank from 0 to 1"),
        ({"jpeg": 3}, "unknown setting"),
    ],
)
def test_settings_that_cannot_be(place, tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        prepare(place, tmp_path / "out", **settings)


def test_sources_that_cannot_be(place, prepared, tmp_path):
    for source, said in (
        ("pocket:broadcast", "nothing to prepare"), (tmp_path / "none", "no such folder"), (tmp_path, "no videos"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            mcm.prepare(source, tmp_path / "out", place / "animatediff", frames=4)
        assert not (tmp_path / "out").exists()  # nothing half-written
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_bytes(b"nothing")
    (tmp_path / "bad" / "a.txt").write_text("a film")
    with pytest.raises(UserError, match=r"1 videos, 0 usable: 1 .*The first: a.mp4"):
        mcm.prepare(tmp_path / "bad", tmp_path / "out", place / "animatediff", frames=4)
    shutil.copytree(prepared, tmp_path / "other")
    with pytest.raises(UserError, match="frames is 4 there and 3 here"):
        prepare(place, tmp_path / "other", frames=3)


def test_text_padding_that_is_zero_takes_no_room(tmp_path):
    from mcm.data.shards import Shard, ShardDraft

    draft = ShardDraft()
    hidden = torch.zeros(8, 3)
    hidden[:2] = torch.randn(2, 3)
    for k, states in enumerate((hidden, torch.ones(8, 3), torch.zeros(8, 3))):
        draft.add_text(f"caption {k}", states, torch.full((2,), float(k)))
        draft.add({"name": f"{k}", "caption": f"caption {k}"}, torch.zeros(1, 2, 2, 2), [])
    draft.write(tmp_path / "shard.safetensors", "mark", "listing")
    assert load_file(tmp_path / "shard.safetensors")["hidden"].shape == (2 + 8 + 1, 3)
    shard = Shard(tmp_path / "shard.safetensors")
    assert torch.equal(shard.text(0, 8)[0], hidden)
    assert torch.equal(shard.text(1, 8)[0], torch.ones(8, 3))
    assert torch.equal(shard.text(2, 8)[0], torch.zeros(8, 3))
    assert shard.text(2, 8)[1].tolist() == [2.0, 2.0]


def test_tars_and_urls_give_the_same_clips(place, prepared, tmp_path, monkeypatch):
    """Latents, captions and frames as from the folder; a second process finds the items by the list alone."""
    import tarfile

    import fsspec

    films = sorted((place / "clips").iterdir())
    with tarfile.open(tmp_path / "films.tar", "w") as tar:
        for path in films:
            tar.add(path, path.name)
    store = fsspec.filesystem("memory")
    for path in films:
        store.pipe(f"/prepare/clips/{path.name}", path.read_bytes())
    store.put(str(tmp_path / "films.tar"), "/prepare/films.tar")
    monkeypatch.setenv("MCM_CACHE", str(tmp_path / "fetched"))
    wanted = opened(place, prepared)
    for k, source in enumerate((tmp_path / "films.tar", "memory://prepare/clips", "memory://prepare/films.tar")):
        out = tmp_path / f"out{k}"
        first = mcm.prepare(source, out, place / "animatediff", frames=4, shard_size=3, rank=1, world=2)
        assert not first["finished"]
        report = mcm.prepare(source, out, place / "animatediff", frames=4, shard_size=3)  # goes on with the list
        assert (report["found"], report["used"]) == (FILMS + 1, FILMS)
        clips, everything = opened(place, out), list(range(FILMS))
        assert list(clips.captions) == list(wanted.captions)
        assert torch.equal(clips.latents(everything), wanted.latents(everything))
        assert all(torch.equal(clips.frame(i, 1), wanted.frame(i, 1)) for i in everything)
