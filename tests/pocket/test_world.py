"""The world of puppets: what a number means, what is held out, and that keypoints, pictures and captions agree."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mcm.errors import UserError
from mcm.pocket import sources, world
from mcm.pocket.puppet import ACTIONS, FOREARM, KEYPOINTS, SHIN, THIGH, TORSO, UPPER_ARM
from mcm.pocket.render import PAINT, SKIN
from mcm.pocket.world import Spec

POINT = {name: number for number, name in enumerate(KEYPOINTS)}
PLAIN = Spec("wave", "red", "blue", "park", "still", 0.5, 1.0, 1, 0.0, 0.78, 11)
TRAINING = ("train", "student", "pictures")


def of_action(action: str, count: int = 3, split: str = "train") -> list[Spec]:
    numbered = (world.spec(split, i) for i in itertools.count())
    return list(itertools.islice((s for s in numbered if s.action == action), count))


def combination(s: Spec) -> tuple[str, str, str, str]:
    return s.action, s.top, s.bottom, s.scene


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Spec]]:
    return {split: [world.spec(split, i) for i in range(2000)] for split in TRAINING}


# Numbers and captions ------------------------------------------------------------------------------------------------


def test_a_number_means_the_same_clip_on_every_machine() -> None:
    """Written down once: a change here changes what every trained network has seen."""
    s = world.spec("train", 0)
    assert (*combination(s), s.camera, s.facing, s.seed) == ("bow", "red", "yellow", "beach", "left", -1, 35492827)
    assert (s.phase, s.cycles, s.x, s.height) == pytest.approx(
        (-0.18417062898890377, 0.9561460285904292, 0.043857833488038137, 0.8130204461822177), rel=1e-12
    )
    s = world.spec("student", 7)
    assert (*combination(s), s.camera, s.facing, s.seed) == ("kick", "purple", "red", "beach", "left", 1, 737611015)
    assert combination(world.spec("reference", 0)) == ("jump", "purple", "white", "street")


@pytest.mark.parametrize("domain", ["broadcast", "studio", "toon", "relief"])
def test_a_clip_is_a_function_of_its_number_and_of_nothing_else(domain: str) -> None:
    specs = [world.spec("train", i) for i in range(3)]
    together = world.film(specs, domain, 32, 4)
    alone = world.film([world.spec("train", 1)], domain, 32, 4)
    assert together.video.shape == (3, 3, 4, 32, 32)
    assert together.keypoints.shape == (3, 4, 18, 2)
    assert torch.equal(together.video[1], alone.video[0])
    assert torch.equal(together.keypoints[1], alone.keypoints[0])
    assert -1 <= float(together.video.min()) < -0.5
    assert 0.3 < float(together.video.max()) <= 1
    assert not torch.equal(together.video[0], together.video[1])


def test_splits_are_different_films() -> None:
    assert len({(s.phase, s.seed) for split in world.SPLITS for s in [world.spec(split, 5)]}) == len(world.SPLITS)


def test_captions_name_what_the_labels_say(drawn: dict[str, list[Spec]]) -> None:
    where = {"park": "in a park", "beach": "on a beach", "street": "in a street", "night": "at night"}
    for s in drawn["train"][:300]:
        labels = s.labels
        assert list(ACTIONS)[labels["action"]] == s.action
        shirt, trousers = world.COLOURS[labels["top"]], world.COLOURS[labels["bottom"]]
        begin = f"a person in a {shirt} shirt and {trousers} trousers {world.DOING[s.action]} "
        begin += where[world.SCENES[labels["scene"]]]
        camera = world.CAMERAS[labels["camera"]]
        assert s.caption == begin + ("" if camera == "still" else f", the camera pans {camera}")


def test_what_is_held_out_is_in_no_training_split(drawn: dict[str, list[Spec]]) -> None:
    held_out = set(world.HELD_OUT_COMBINATIONS)
    assert not held_out & set(world.TRAIN_COMBINATIONS)
    assert len(held_out) + len(world.TRAIN_COMBINATIONS) == 6 * 6 * 6 * 4
    assert 0.07 < len(held_out) / (6 * 6 * 6 * 4) < 0.13
    for specs in drawn.values():
        assert not held_out & {combination(s) for s in specs}
    assert {combination(world.spec("reference", i)) for i in range(len(held_out))} == held_out
    captions = {s.caption for specs in drawn.values() for s in specs}
    assert not captions & set(world.held_out_prompts())


def test_prompt_i_belongs_to_reference_clip_i() -> None:
    prompts = world.held_out_prompts(120)
    clips = sources.PocketClips("studio", 1, (16, 16), 120, "reference")
    assert [clips[i].caption for i in (0, 3, 95, 119)] == [prompts[i] for i in (0, 3, 95, 119)]
    assert prompts == [world.spec("reference", i).caption for i in range(120)]
    assert len(set(prompts)) == 120  # gone through again with another camera


def test_the_first_prompts_are_a_mixture() -> None:
    first = [world.spec("reference", i) for i in range(64)]
    assert {s.action for s in first} == set(ACTIONS)
    assert {s.scene for s in first} == set(world.SCENES)
    assert {s.top for s in first} == {s.bottom for s in first} == set(world.COLOURS)


def test_everything_occurs_about_equally_often(drawn: dict[str, list[Spec]]) -> None:
    for specs in drawn.values():
        for field, known in (
            ("action", tuple(ACTIONS)), ("top", world.COLOURS), ("bottom", world.COLOURS), ("scene", world.SCENES),
            ("camera", world.CAMERAS), ("facing", (-1, 1)),
        ):  # fmt: skip
            counts = Counter(getattr(s, field) for s in specs)
            assert set(counts) == set(known)
            for name in known:  # five standard deviations; nine in ten combinations are not exactly even
                assert counts[name] / len(specs) == pytest.approx(1 / len(known), rel=0.3), (field, name)


def test_an_unknown_split_or_domain_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"split.*'trian'.*did you mean 'train'"):
        world.spec("trian", 0)
    with pytest.raises(UserError, match=r"domain.*'stdio'.*did you mean 'studio'"):
        world.film([PLAIN], "stdio")
    with pytest.raises(UserError, match=r"source 'pocket:tone'.*did you mean 'pocket:toon'"):
        sources.domain("pocket:tone")
    assert sources.domain("some/folder") is None
    assert sources.domain("pocket:relief") == "relief"


# The figure ----------------------------------------------------------------------------------------------------------


def lengths(points: Tensor) -> dict[str, Tensor]:
    """Lengths of the limbs (B, T), from keypoints (B, T, 18, 2) in any unit."""

    def between(a: str, b: str) -> Tensor:
        return (points[..., POINT[a], :] - points[..., POINT[b], :]).norm(dim=-1)

    found = {}
    for side in ("right", "left"):
        found |= {
            f"thigh {side}": between(f"{side}_hip", f"{side}_knee"),
            f"shin {side}": between(f"{side}_knee", f"{side}_ankle"),
            f"upper arm {side}": between(f"{side}_shoulder", f"{side}_elbow"),
            f"forearm {side}": between(f"{side}_elbow", f"{side}_wrist"),
            f"shoulder {side}": between(f"{side}_shoulder", "neck"),
        }
    hips = (points[..., POINT["right_hip"], :] + points[..., POINT["left_hip"], :]) / 2
    found["torso"] = (points[..., POINT["neck"], :] - hips).norm(dim=-1)
    found["hips"] = between("right_hip", "left_hip")
    return found


def test_limbs_are_rigid_and_of_the_lengths_of_the_body(drawn: dict[str, list[Spec]]) -> None:
    specs = drawn["train"][:60]
    height = torch.tensor([s.height for s in specs])[:, None]
    found = lengths(world.stage(specs, 8))
    for length in found.values():
        torch.testing.assert_close(length, length[:, :1].expand_as(length), atol=1e-5, rtol=0)
    wanted = {"thigh": THIGH, "shin": SHIN, "upper arm": UPPER_ARM, "forearm": FOREARM, "torso": TORSO}
    for name, share in wanted.items():
        for limb in (limb for limb in found if limb.startswith(name)):
            torch.testing.assert_close(found[limb], (share * height).expand_as(found[limb]), atol=1e-5, rtol=0)


def test_feet_stand_on_the_ground_unless_jumping(drawn: dict[str, list[Spec]]) -> None:
    specs = drawn["train"][:120]
    points = world.stage(specs, 8)
    lowest = points[..., [POINT["right_ankle"], POINT["left_ankle"]], 1].amax(dim=-1)
    jumping = torch.tensor([s.action == "jump" for s in specs])
    torch.testing.assert_close(lowest[~jumping], torch.full_like(lowest[~jumping], 0.93), atol=1e-5, rtol=0)
    assert float(lowest[jumping].max()) <= 0.93 + 1e-5
    assert bool((lowest[jumping].amin(dim=1) < 0.85).all())  # every jump leaves the ground by a tenth
    assert bool((lowest[jumping].amax(dim=1) > 0.929).all())  # and comes down


def test_the_figure_fills_the_frame_and_stays_inside(drawn: dict[str, list[Spec]]) -> None:
    specs = drawn["train"][:150]
    points = world.stage(specs, 8)
    assert float(points.min()) > 0
    assert float(points.max()) < 1
    tall = points[..., 1].amax(dim=2) - points[..., 1].amin(dim=2)
    for number, s in enumerate(specs):
        assert float(tall[number].max()) > 0.45, s
        if s.action in ("walk", "wave", "kick", "jump"):
            assert float(tall[number].min()) > 0.55, s


def test_every_action_moves_its_own_way() -> None:
    """Each action in the joint that makes it, in fractions of the frame: no two look the same."""
    swing = {}
    for action in ACTIONS:
        points = world.stage([replace(PLAIN, action=action)], 16)[0]
        reach = points.amax(dim=0) - points.amin(dim=0)
        swing[action] = {
            "hips up and down": float(reach[POINT["right_hip"], 1]), "neck forward": float(reach[POINT["neck"], 0]),
            "right ankle up": float(reach[POINT["right_ankle"], 1]),
            "left wrist": float(reach[POINT["left_wrist"]].norm()),
            "both ankles up": float(points[:, [POINT["right_ankle"], POINT["left_ankle"]], 1].amax(1).min()),
        }  # fmt: skip
    assert max(swing, key=lambda a: swing[a]["hips up and down"]) in ("squat", "jump")
    assert min(swing, key=lambda a: swing[a]["both ankles up"]) == "jump"
    assert max(swing, key=lambda a: swing[a]["right ankle up"]) == "kick"
    still = [swing["wave"][k] for k in ("hips up and down", "neck forward", "right ankle up")]
    assert max(still) < 1e-4 < 0.1 < swing["wave"]["left wrist"]
    assert swing["bow"]["neck forward"] > 0.15 > swing["bow"]["hips up and down"]
    walk = world.stage([replace(PLAIN, action="walk", facing=side) for side in (-1, 1)], 8)[..., POINT["neck"], 0]
    assert float(walk[0, -1] - walk[0, 0]) == pytest.approx(-0.22, abs=1e-5)  # goes where it looks
    assert float(walk[1, -1] - walk[1, 0]) == pytest.approx(0.22, abs=1e-5)


def test_facing_mirrors_the_figure() -> None:
    points = world.stage([replace(PLAIN, action="kick", facing=side) for side in (1, -1)], 8)
    torch.testing.assert_close(points[0, ..., 0] - 0.5, 0.5 - points[1, ..., 0], atol=1e-6, rtol=0)
    assert torch.equal(points[0, ..., 1], points[1, ..., 1])


# Pictures ------------------------------------------------------------------------------------------------------------


def pixel(video: Tensor, at: Tensor) -> Tensor:
    """Colours in [0, 1] of a clip (3, T, H, W) at one point of each frame (T, 2), in pixels -> (T, 3)."""
    column, row = at.floor().long().unbind(dim=-1)
    return (video[:, torch.arange(len(at)), row, column].T + 1) / 2


def check_paint(found: Tensor, paint: tuple[float, ...]) -> None:
    """Shading darkens a colour to four fifths at most and lightens it by a fiftieth, in all channels alike."""
    wanted = torch.tensor(paint)
    assert bool((found >= 0.78 * wanted - 0.01).all()), (found, paint)
    assert bool((found <= 1.03 * wanted + 0.01).all()), (found, paint)


@pytest.mark.parametrize("action", list(ACTIONS))
def test_keypoints_are_where_the_limbs_are(action: str) -> None:
    """The near arm and the middle of the body are never hidden; the near knee where no arm hangs over it."""
    specs = of_action(action)
    rendered = world.film(specs, "studio", 128, 8)
    for s, video, points in zip(specs, rendered.video, rendered.keypoints, strict=True):
        top, bottom = PAINT[s.top], PAINT[s.bottom]
        check_paint(pixel(video, points[:, POINT["right_elbow"]]), top)
        check_paint(pixel(video, points[:, POINT["right_wrist"]]), SKIN)
        if action in ("wave", "walk", "kick", "jump"):
            check_paint(pixel(video, points[:, POINT["right_knee"]]), bottom)
        if action in ("wave", "kick"):
            hips = (points[:, POINT["right_hip"]] + points[:, POINT["left_hip"]]) / 2
            check_paint(pixel(video, hips), top)
        if action == "wave":
            check_paint(pixel(video, points[:, POINT["left_elbow"]]), top)
            check_paint(pixel(video, points[:, POINT["left_wrist"]]), SKIN)


@pytest.mark.parametrize("scene", world.SCENES)
def test_a_panning_camera_moves_the_scenery_and_not_the_figure(scene: str) -> None:
    """125 pixels and 7 frames: a pan is exactly four pixels a frame."""
    specs = [replace(PLAIN, scene=scene, camera=camera) for camera in world.CAMERAS]
    (still, left, right), points = world.film(specs, "studio", 125, 7)
    assert torch.equal(points[0], points[1])
    assert torch.equal(points[0], points[2])

    aside = 16  # pixels that a limb is wider than its keypoints
    begin, end = int(points[0, ..., 0].min()) - aside, int(points[0, ..., 0].max()) + aside
    sky = slice(0, 105)  # below lies the figure's shadow
    for columns in (slice(0, begin), slice(end, 125)):
        scenery = still[:, :, sky, columns]
        assert torch.equal(scenery[:, 1:], scenery[:, :1].expand(-1, 6, -1, -1))
        seen = left[:, :, sky, columns]  # the camera turns left, what it sees goes to the right
        torch.testing.assert_close(seen[:, 1:, :, 4:], seen[:, :-1, :, :-4], atol=2e-3, rtol=0)
        seen = right[:, :, sky, columns]
        torch.testing.assert_close(seen[:, 1:, :, :-4], seen[:, :-1, :, 4:], atol=2e-3, rtol=0)
    assert float((left[:, 1:, sky, end:] - left[:, :-1, sky, end:]).abs().mean()) > 1e-3

    for name in ("right_elbow", "right_knee", "right_wrist", "left_elbow"):
        at = points[0, :, POINT[name]]
        torch.testing.assert_close(pixel(left, at), pixel(still, at), atol=1e-5, rtol=0)
        torch.testing.assert_close(pixel(right, at), pixel(still, at), atol=1e-5, rtol=0)


@pytest.mark.parametrize("domain", world.STYLES)
def test_size_changes_the_sampling_and_not_the_scene(domain: str) -> None:
    specs = [world.spec("student", i) for i in range(3)]
    small, large = world.film(specs, domain, 64, 3), world.film(specs, domain, 128, 3)
    assert large.video.shape == (3, 3, 3, 128, 128)
    torch.testing.assert_close(large.keypoints, small.keypoints * 2)
    halved = F.avg_pool2d(large.video.flatten(0, 2)[:, None], 2)[:, 0].view_as(small.video)
    assert float((halved - small.video).abs().mean()) < 0.02
    assert float((halved - small.video).flip(0).abs().mean()) > 0  # the measure sees something at all
    other = world.film(specs[1:] + specs[:1], domain, 64, 3).video
    assert float((halved - other).abs().mean()) > 0.1


def test_more_frames_show_the_same_action_in_finer_steps() -> None:
    specs = [s for s in (world.spec("student", i) for i in range(12)) if s.action != "walk"]  # who walks also travels
    few, many = world.stage(specs, 8), world.stage(specs, 16)
    assert many.shape[1] == 16
    torch.testing.assert_close(many[:, ::2], few, atol=1e-5, rtol=0)
    assert world.film([PLAIN], "toon", 32, 16).video.shape == (1, 3, 16, 32, 32)


def test_styles_differ_in_look_and_agree_in_content() -> None:
    shown = {style: world.film([PLAIN], style, 64, 2) for style in world.DOMAINS}
    for a, b in itertools.combinations(world.DOMAINS, 2):
        assert float((shown[a].video - shown[b].video).abs().mean()) > 0.02, (a, b)
        assert torch.equal(shown[a].keypoints, shown[b].keypoints)
    # toon paints flat; every other style shades
    red = torch.tensor(PAINT["red"])
    elbow = {}
    for style in world.DOMAINS:
        shown_large = world.film([PLAIN], style, 128, 1)
        elbow[style] = pixel(shown_large.video[0], shown_large.keypoints[0, :, POINT["right_elbow"]])[0]
    torch.testing.assert_close(elbow["toon"], red, atol=1e-5, rtol=0)
    assert all(float((elbow[style] - red).abs().max()) > 0.01 for style in world.DOMAINS if style != "toon")


# Sources -------------------------------------------------------------------------------------------------------------


def test_sources_read_like_folders() -> None:
    clips = sources.PocketClips("studio", 3, (32, 32), 5)
    assert len(clips) == 5
    assert clips.report.found == clips.report.used == 5
    assert [c.name for c in clips] == [f"student-{i:06d}" for i in range(5)]
    assert clips[2].video.shape == (3, 3, 32, 32)
    wanted = world.film([world.spec("student", 2)], "studio", 32, 3).video[0]
    assert torch.equal(clips[2].video, wanted)
    assert clips[2].caption == world.spec("student", 2).caption

    pictures = sources.PocketPictures("toon", (32, 32), 4)
    assert len(list(pictures)) == len(pictures) == 4
    assert pictures[3].image.shape == (3, 32, 32)
    assert pictures[3].caption == world.spec("pictures", 3).caption
    with pytest.raises(IndexError):
        clips[5]
    with pytest.raises(IndexError):
        pictures[4]


def test_a_picture_is_a_frame_of_its_clip() -> None:
    specs = [world.spec("pictures", i) for i in range(6)]
    only = [5, 0, 3, 7, 2, 4]
    clips, pictures = world.film(specs, "toon", 48), world.film(specs, "toon", 48, only=only)
    each = torch.arange(6)
    torch.testing.assert_close(pictures.video[:, :, 0], clips.video.transpose(1, 2)[each, only])
    torch.testing.assert_close(pictures.keypoints[:, 0], clips.keypoints[each, only])


def test_pictures_show_every_moment_of_an_action() -> None:
    """A clip begins where its action does: pictures of beginnings alone would all be of people who stand."""
    numbers = [i for i in range(200) if world.spec("pictures", i).action == "squat"]
    specs = [world.spec("pictures", i) for i in numbers]
    stage = world.stage(specs, sources.MOMENTS)
    moments = [s.seed % sources.MOMENTS for s in specs]
    assert len(set(moments)) == sources.MOMENTS
    lowest = stage[torch.arange(len(specs)), moments, 0, 1] / torch.tensor([s.height for s in specs])
    assert lowest.std() > 3 * (stage[:, 0, 0, 1] / torch.tensor([s.height for s in specs])).std()
    pictures = sources.PocketPictures("studio", (32, 32), 200)
    first = numbers[0]
    wanted = world.film(specs[:1], "studio", 32, only=moments[:1]).video[0, :, 0]
    assert torch.equal(pictures[first].image, wanted)


def test_the_world_is_square() -> None:
    with pytest.raises(UserError, match=r"square.*32x48"):
        sources.PocketClips("studio", 3, (32, 48), 5)
    with pytest.raises(UserError, match=r"square.*32x48"):
        sources.PocketPictures("studio", (32, 48), 5)
