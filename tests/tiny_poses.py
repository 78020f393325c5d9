"""Tiny random networks that read poses: a ViTPose and an RT-DETR in transformers' folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from mcm.models.keypoints import JOINTS


def tiny_vitpose(folder: Path, joints: int = JOINTS) -> Path:
    """32 x 24 pixels to heatmaps of 8 x 6."""
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = VitPoseBackboneConfig(
            image_size=[32, 24], patch_size=[8, 8], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            mlp_ratio=2, out_indices=[1],
        )  # fmt: skip
        config = VitPoseConfig(backbone_config=backbone, num_labels=joints, scale_factor=2)
        VitPoseForPoseEstimation(config).save_pretrained(folder)
    return folder


def tiny_detector(folder: Path, labels: Mapping[int, str] | None = None) -> Path:
    """64 x 64 pixels, a person (or `labels`), five boxes."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection
    from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )  # fmt: skip
        config = RTDetrConfig(
            backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], encoder_layers=1,
            encoder_ffn_dim=16, encoder_attention_heads=2, d_model=16, num_queries=5, decoder_in_channels=[16, 16, 16],
            decoder_ffn_dim=16, decoder_layers=1, decoder_attention_heads=2, num_denoising=0,
            id2label=dict(labels or {0: "person", 1: "dog"}),
        )  # fmt: skip
        RTDetrForObjectDetection(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64, "width": 64}}))
    return folder
