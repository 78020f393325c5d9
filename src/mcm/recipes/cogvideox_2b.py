"""CogVideoX of 2 billion parameters distilled with MCM. No published run: the settings are reasoned, not tuned.

Command: `mcm distill cogvideox-2b`
Teacher: THUDM/CogVideoX-2b, from the hub or a folder of it (--teacher); its tokenizer takes `pip install sentencepiece
protobuf`. The 5b model goes the same way: `--teacher THUDM/CogVideoX-5b`.
Data: films with their captions in data/videos, or another folder (--videos).
Cost: not measured here.
Expected score: none is known.

Why these settings, where they differ from the paper's:
- 25 frames of the teacher's 49, at its 480 x 720 and 8 frames a second: 9,450 tokens of video, not 17,550, for the
  activations of a training step grow with them (8k + 1 frames go; raise data.frames where there is memory).
- w in [3, 7], guidance scales 4 to 8: the teacher is used at 6; the paper's 5 to 15 are for teachers used at 7.5 and 9.
- 5,000 updates of 32 clips, a thirtieth of the clips of the paper's runs; therefore twice its learning rate.
"""

from __future__ import annotations

from mcm.recipe import DataConfig, MethodConfig, OptimConfig, Recipe, TrainingConfig


def recipe() -> Recipe:
    """The recipe "cogvideox-2b"."""
    return Recipe(
        name="cogvideox-2b",
        teacher="THUDM/CogVideoX-2b",
        method=MethodConfig(name="mcm", adversary="video", guidance_min=3.0, guidance_max=7.0),
        data=DataConfig(videos="./data/videos", fps=8, frames=25, size=(480, 720)),
        optim=OptimConfig(lr=1e-5, discriminator_lr=1e-4, weight_decay=0.0, warmup=200),
        training=TrainingConfig(
            updates=5000, batch=1, accumulation=32, precision="bf16", save_every=250, preview_every=500
        ),
    )
