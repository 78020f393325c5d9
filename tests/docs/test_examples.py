"""The examples of docs/extend.md: each a new file where it belongs, found by name, right, and used in a real run.

A copy of the package (links, and the examples among them) stands for the repository after the files were added.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import EXAMPLES, ROOT, blocks
from tiny import _save_rest
from tiny_run import make_material

SOURCE = ROOT / "src" / "mcm"
IMPORTS = ("from ", "import ")
NEW = {"models": "stable_diffusion.py", "methods": "guidance.py", "samplers": "ancestral.py"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """house/mcm: the package with the examples; beside it tiny teachers, clips, and a picture model."""
    folder = tmp_path_factory.mktemp("extend")
    package = folder / "house" / "mcm"
    package.mkdir(parents=True)
    for origin in SOURCE.iterdir():
        if origin.name in NEW:
            (package / origin.name).mkdir()
            for inside in origin.glob("*.py"):
                (package / origin.name / inside.name).symlink_to(inside)
        elif origin.name not in ("__pycache__", "motion.py"):
            (package / origin.name).symlink_to(origin)
    for room, name in NEW.items():
        (package / room / name).write_text((ROOT / "docs" / EXAMPLES / room / name).read_text())
    added = (ROOT / "docs" / EXAMPLES / "motion" / "acceleration.py").read_text()
    text = (SOURCE / "motion.py").read_text()
    (package / "motion.py").write_text(text + "\n\n" + added[added.index("class ") :])
    make_material(folder)
    picture_model(folder / "teachers" / "stable-diffusion")
    return folder


def picture_model(folder: Path) -> None:
    """A tiny Stable Diffusion that diffusers' own pipeline loads."""
    import diffusers
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    _save_rest(folder)
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None], "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }  # fmt: skip
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__, **parts}
    (folder / "model_index.json").write_text(json.dumps(index))


def python(place: Path, code: str) -> str:
    """What a program prints that imports the package with the examples."""
    environment = {**os.environ, "PYTHONPATH": f"{place / 'house'}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_is_shown_whole_on_the_page_and_is_short() -> None:
    text = (ROOT / "docs" / "extend.md").read_text()
    files = sorted((ROOT / "docs" / EXAMPLES).rglob("*.py"))
    assert len(files) == 4
    for path in files:
        assert f"<!-- file: {path.relative_to(ROOT)} -->" in text
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith(IMPORTS)]
        assert len(lines) <= 32, f"{path.name}: {len(lines)} lines"


MATHEMATICS = """
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from mcm.diffusion.paths import Denoised, RectifiedFlow, VariancePreserving
from mcm.errors import UserError
from mcm.generate import load_maker
from mcm.motion import motion_representation
from mcm.samplers import sample, sampler

# The sampler: one step is diffusers' DDPM step with the same noise, on the same times.
config = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="linear")
path = VariancePreserving.from_config(config)
theirs = DDPMScheduler(**config, clip_sample=False, timestep_spacing="trailing", variance_type="fixed_small")
theirs.set_timesteps(10)
own = sampler("ancestral")
times = own.times(path, 10)
assert times[:-1].tolist() == theirs.timesteps.tolist(), (times, theirs.timesteps)
rng = torch.Generator().manual_seed(0)
z, eps = torch.randn(2, 1, 4, 3, 2, 2, generator=rng)
for t, s in zip(times[:-2], times[1:-1]):
    said = path.read(eps, z, t[None], "epsilon")
    ours = own.step(path, said, z, t[None], s[None], {}, torch.Generator().manual_seed(1))
    wanted = theirs.step(eps, int(t), z, generator=torch.Generator().manual_seed(1)).prev_sample
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
# and on either path a known clean video comes back, with the right spread on the way
for noise_path in (path, RectifiedFlow()):
    clean = torch.full((4, 1, 2, 32, 32), 0.7)
    def known(z, t):
        a, b = (x.reshape(-1, 1, 1, 1, 1) for x in (noise_path.alpha(t), noise_path.sigma(t)))
        return Denoised(clean, (z - a * clean) / b)
    noise = torch.randn(clean.shape, generator=rng)
    torch.testing.assert_close(sample(known, noise_path, own, noise, 5, rng), clean)
    t, s = own.times(noise_path, 5)[1:3].float()
    z = noise_path.diffuse(clean, noise, t.expand(4))
    there = own.step(noise_path, known(z, t.expand(4)), z, t.expand(4), s.expand(4), {}, rng)
    spread = float((there - noise_path.alpha(s[None]) * clean).std() / noise_path.sigma(s[None]))
    assert abs(spread - 1) < 0.03, spread

# The motion representation: blind to what is still and to what moves steadily, not to what turns round.
phi = motion_representation("acceleration", 2)
ramp = torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand(1, 2, 5, 3, 3)
still = torch.randn(1, 2, 1, 3, 3, generator=rng)
assert phi(still + 0.5 * ramp).abs().max() < 1e-5
turned = phi(ramp**2)
torch.testing.assert_close(turned, torch.full_like(turned, 2.0))
assert turned.shape == (1, 2, 3, 3, 3)
try:
    phi(ramp[:, :, :2])
    raise AssertionError("two frames have no acceleration")
except UserError as error:
    assert "3 frames" in str(error)

# The family: latents of diffusers' own pipeline from the same noise, frame by frame.
maker = load_maker("teachers/stable-diffusion")
assert maker.model.family == "stable-diffusion"
z = torch.randn(1, 4, 3, 8, 8, generator=rng)
t = torch.tensor([500])
text = maker.model.text(["a red puppet walks"])
said = maker.model.denoiser(z, t, text).eps
unet = maker.model.denoiser.network
for k in range(3):
    alone = unet(z[:, :, k], t, encoder_hidden_states=text.hidden).sample
    torch.testing.assert_close(said[:, :, k], alone, rtol=1e-4, atol=1e-5)
pipeline = StableDiffusionPipeline.from_pretrained("teachers/stable-diffusion")
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=False)
pipeline.set_progress_bar_config(disable=True)
noise = torch.randn(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
theirs = pipeline(
    "a red puppet walks", num_inference_steps=5, guidance_scale=4.0, height=16, width=16, latents=noise[:, :, 0],
    output_type="latent",
).images
ours = maker.latents(["a red puppet walks"], [3], 5, "ddim", 4.0, 1, (16, 16))[:, :, 0]
torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
"""

METHOD = """
import torch
from mcm.methods import method
from mcm.methods.base import Batch, Players
from mcm.models.student import Student
from mcm.models.video import load_video_model
from mcm.motion import motion_representation

model = load_video_model("animatediff")
student = Student.lora(model.denoiser, 4, 4.0, "attention")
phi = motion_representation("raw", 4)
players = Players(model, student, phi, phi, None)
rule = method("guidance", guidance_min=2.0, guidance_max=2.0)
assert rule.order == ("student",) and rule.adversary == "none"
text, empty = model.text(["a red puppet walks"]), model.text([""])
batch = Batch(torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), text, empty)

def loss(rule, seed=0):
    (turn,) = rule.turns(players, batch, torch.Generator().manual_seed(seed))
    assert turn.player == "student"
    return turn.losses["guidance"]

# Adapters begin as nothing: without guidance the student says what its teacher says, with it it does not.
assert float(loss(method("guidance", guidance_min=0.0, guidance_max=0.0))) < 1e-10
first = loss(rule)
assert float(first) > 1e-6
weights = list(student.trainable().values())
optimizer = torch.optim.Adam(weights, lr=3e-3)
for _ in range(15):
    optimizer.zero_grad()
    loss(rule).backward()
    optimizer.step()
assert float(loss(rule)) < 0.5 * float(first), (float(first), float(loss(rule)))
assert all(p.grad is None for name, p in model.denoiser.named_parameters() if "lora" not in name)
print("right")
"""


def test_their_mathematics(place: Path) -> None:
    assert python(place, MATHEMATICS + METHOD).endswith("right\n")


def test_the_commands_of_the_page_run(place: Path) -> None:
    """All in one process: the names are listed, and a run uses the method and the motion representation."""
    lines = [words[1:] for b in blocks("bash", "docs/extend.md") if b.apart == EXAMPLES for words in b.commands()]
    assert len(lines) == 4
    code = f"""
import json, pytest
from tiny_docs import TINY, command, small
with small(pytest.MonkeyPatch()):
    for words in {lines!r}:
        assert command(["mcm", *words]) == 0, words
    print("LIST")
    assert command(["mcm", "list", "--json"]) == 0
"""
    found = json.loads(python(place, code).rpartition("LIST\n")[2])
    assert "ancestral" in found["samplers"]
    assert "guidance" in found["methods"]
    assert "acceleration" in found["motion representations"]
    cards = [json.loads(path.read_text()) for path in (place / "runs").glob("*/student/card.json")]
    made = {(card["method"], card["sampler"]["name"]) for card in cards}
    assert made == {("guidance", "ddim"), ("mcm", "consistency")}
    assert {card["provenance"]["recipe"]["method"]["motion"] for card in cards} == {"raw", "acceleration"}
    assert len(list((place / "runs" / "videos").rglob("*.mp4"))) == 2


def test_no_name_of_an_example_is_taken() -> None:
    for room, name in NEW.items():
        assert not (SOURCE / room / name).exists()
