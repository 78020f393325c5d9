"""Tiny random teachers in real diffusers folders, for any test: two-level UNets, 16 x 16 pixels to 8 x 8
latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "red", "blue", "puppet", "walks", "jumps", "in", "the", "park", "at", "night"]
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 8
WIDTH = 16
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


PICTURES: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "cross_attention_dim": WIDTH, "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def tiny_animatediff(folder: Path, layout: str = "motion", seed: int = 0) -> Path:
    """An AnimateDiff pipeline: layout "motion" (unet/ is a UNetMotionModel) or "adapter" (SD UNet +
    adapter)."""
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pictures = UNet2DConditionModel(**PICTURES)
        adapter = MotionAdapter(
            block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=8,
            motion_num_attention_heads=2, motion_max_seq_length=16, use_motion_mid_block=False,
        )  # fmt: skip
        _wake(adapter)
        if layout == "motion":
            UNetMotionModel.from_unet2d(pictures, adapter).save_pretrained(folder / "unet")
        else:
            pictures.save_pretrained(folder / "unet")
            adapter.save_pretrained(folder / "motion_adapter")
        _save_rest(folder)
    _index(folder, "AnimateDiffPipeline")
    return folder


def tiny_look(folder: Path, seed: int = 0, rank: int = 3, alpha: float | None = None, **changed: Any) -> Path:
    """A LoRA of `tiny_animatediff`'s image UNet, as diffusers writes it; alpha: told in the file, else as the rank.

    changed: of the UNet's settings. Returns the file.
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from peft import LoraConfig, get_peft_model_state_dict

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = UNet2DConditionModel(**(PICTURES | changed))
        layers = ["to_q", "to_out.0", "proj_in", "conv1", "conv_in"]
        config: Any = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=layers)
        network.add_adapter(config)
        state = {k: 0.3 * torch.randn_like(v) for k, v in get_peft_model_state_dict(network).items()}
        told = None if alpha is None else config.to_dict() | {"target_modules": layers}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state, unet_lora_adapter_metadata=told)
    return folder / "pytorch_lora_weights.safetensors"


def tiny_modelscope(folder: Path, seed: int = 0) -> Path:
    """A ModelScope pipeline with a UNet3DConditionModel."""
    from diffusers import UNet3DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet3DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            cross_attention_dim=WIDTH, attention_head_dim=8, down_block_types=("CrossAttnDownBlock3D",
            "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        )  # fmt: skip
        _wake(network)
        network.save_pretrained(folder / "unet")
        _save_rest(folder)
    _index(folder, "TextToVideoSDPipeline")
    return folder


def tiny_controlnet(folder: Path, seed: int = 0, **changed: Any) -> Path:
    """A ControlNetModel for `tiny_animatediff`, whose word is heard from the start; `changed`: its settings."""
    from diffusers import ControlNetModel

    settings: dict[str, Any] = {
        "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 2,
        "cross_attention_dim": WIDTH, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "conditioning_embedding_out_channels": (4, 8),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ControlNetModel(**(settings | changed))
        _wake(network)
        for part in (network.controlnet_cond_embedding.conv_in, network.controlnet_cond_embedding.conv_out):
            part.weight.data *= 20  # thin lines must be seen
        network.save_pretrained(folder)
    return folder


def tiny_dinov2(folder: Path, seed: int = 0, layers: int = 4) -> Path:
    """A vision backbone: Dinov2Model, 16 x 16 pixels in patches of 4 x 4."""
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Dinov2Config(
            image_size=16,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            mlp_ratio=2,
        )
        Dinov2Model(config).save_pretrained(folder)
    return folder


def tiny_tokenizer(folder: Path) -> Path:
    """A CLIPTokenizer's files, written out: WORDS are one token each, other words are spelled."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    entries, merges = [*letters, *(x + "</w>" for x in letters)], []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts[:2] = [parts[0] + parts[1]]
            if merge not in merges:
                merges.append(merge)
                entries.append(parts[0])
    vocabulary = {word: i for i, word in enumerate([*dict.fromkeys(entries), START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=LENGTH,
        unk_token=END, bos_token=START, eos_token=END, pad_token=END,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _wake(network: torch.nn.Module) -> None:
    """Layers that start at zero (temporal ones do) get weights, or no test would see them."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)


def _save_rest(folder: Path) -> None:
    """vae/, text_encoder/, tokenizer/ and scheduler/."""
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.5,
    ).save_pretrained(folder / "vae")  # fmt: skip
    words = CLIPTokenizer.from_pretrained(tiny_tokenizer(folder / "tokenizer"))
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=WIDTH,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    DDIMScheduler(**BETAS).save_pretrained(folder / "scheduler")


def _index(folder: Path, name: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
