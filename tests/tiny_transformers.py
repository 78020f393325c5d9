"""Tiny random Wan and CogVideoX teachers in real diffusers folders: 32 x 32 pixels to 4 x 4 latents, a quarter of the
frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import WIDTH, WORDS, _wake

WAN_SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}
COG_SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing", "set_alpha_to_one": True,
}  # fmt: skip


def tiny_wan(folder: Path, experts: float | None = None, seed: int = 0, **changed: Any) -> Path:
    """A Wan pipeline; experts: the boundary_ratio of two transformers, as Wan 2.2 has them. changed: the network's."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    settings: dict[str, Any] = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
        "out_channels": 4, "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in ("transformer", "transformer_2")[: 1 if experts is None else 2]:
            network = WanTransformer3DModel(**(settings | changed))
            _wake(network)
            network.save_pretrained(folder / part)
        vae = AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.5, 1.0, 2.0],
        )  # fmt: skip
        vae.save_pretrained(folder / "vae")
        _text(folder, UMT5EncoderModel, UMT5Config)
    FlowMatchEulerDiscreteScheduler(**WAN_SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "mcm.json").write_text(json.dumps({"frames": 9, "size": [32, 32]}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "boundary_ratio": experts}))
    return folder


def tiny_cogvideox(folder: Path, rotary: bool = False, seed: int = 0, **changed: Any) -> Path:
    """A CogVideoX pipeline, as the 2b model or, rotary, as the 5b one. changed: the network's settings."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    settings: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
        "text_embed_dim": WIDTH, "num_layers": 2, "sample_width": 6, "sample_height": 4, "sample_frames": 9,
        "max_text_seq_length": 12, "use_rotary_positional_embeddings": rotary,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CogVideoXTransformer3DModel(**(settings | changed))
        _wake(network)
        network.save_pretrained(folder / "transformer")
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
            scaling_factor=0.7,
        )  # fmt: skip
        vae.save_pretrained(folder / "vae")
        _text(folder, T5EncoderModel, T5Config)
    CogVideoXDDIMScheduler(**COG_SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    return folder


def _text(folder: Path, network: Any, config: Any) -> None:
    """tokenizer/ and text_encoder/: T5's, WORDS are one token each, other words are unknown."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -2.0) for word in WORDS)]
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512).save_pretrained(folder / "tokenizer")
    network(config(vocab_size=len(pieces), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)).save_pretrained(
        folder / "text_encoder"
    )
