"""Looks for pocket-animatediff: LoRAs of its image UNet (arXiv 2106.09685), one for each picture style that it gets.

They are to the laboratory what the many fine-tuned Stable Diffusion models are to AnimateDiff: other image models
beneath the same motion modules. Trained as people train them: on stills of the style with their captions, the image
UNet itself frozen; they are written in the layout of diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict

from mcm.pocket.training.corpus import COUNTS, Corpus, draw
from mcm.pocket.training.latents import Captions, Latents
from mcm.pocket.training.loop import Losses, train
from mcm.pocket.training.teachers import denoising_loss

RANK, FRAMES = 4, 8
# Every linear layer and convolution but those of the time: what a style is made of is in textures, too.
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2",
    "conv_shortcut", "conv_in", "conv_out",
)  # fmt: skip


def build(image: Any, seed: int = 0) -> Any:
    """The image UNet with a LoRA in it that says nothing yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)), "look")
    return image


def fit(work: Path, style: str, steps: int, batch: int = 32) -> None:
    """Stills of a style with their captions; the image UNet is that of `work`/image. Writes `work`/look-STYLE."""
    vae: Any = AutoencoderKL.from_pretrained(work / "autoencoder", torch_dtype=torch.float32).eval()
    latents = Latents(work, Corpus(work, "train", style, COUNTS[style]), vae, f"train-{style}")
    captions = Captions(work / "clip")
    unet = build(UNet2DConditionModel.from_pretrained(work / "image", torch_dtype=torch.float32).eval())
    lora = [p for name, p in unet.named_parameters() if "lora_" in name]

    def losses(step: int, rng: torch.Generator) -> Losses:
        index, moments = draw(rng, batch, len(latents)), draw(rng, batch, FRAMES)
        text = captions.drop([latents.specs[i].caption for i in index], rng)
        z = latents.z[index, :, moments].float()
        return denoising_loss(lambda x, t, c: unet(x, t, c).sample, z, text, rng)

    unet.load_state_dict(
        train(
            f"look-{style}", unet, losses, steps=steps, learning_rate=2e-3, work=work, parameters=lora, average=0.995,
            weight_decay=0.0,
        )
    )  # fmt: skip
    trained: dict[str, Any] = get_peft_model_state_dict(unet, adapter_name="look")
    state = {name: weight.half() for name, weight in trained.items()}
    StableDiffusionPipeline.save_lora_weights(work / f"look-{style}", unet_lora_layers=state)
