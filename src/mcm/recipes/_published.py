"""What the published runs of the Motion Consistency Model (arXiv 2406.06890) have in common.

The settings are those of the official training scripts: LoRA of rank 64 on every linear layer and 2-D convolution, 16
frames read at every eighth of the film, 38,500 updates (two epochs of WebVid-2M) of 128 clips; N = 50 solver steps,
w ~ U[5, 15], k = 4, c = 0.001, the learnable motion representation with an average of 0.95, two frames a clip for the
discriminator (hinge loss, gradient penalty 1e-5), lambda = 0.5. The scripts scale the learning rates, 5e-6 and 5e-5, by
batch / 128, the discriminator's once more by its two frames a clip; no weight decay.

The 128 clips of an update go one at a time here (training.accumulation); take a larger training.batch with so much
less accumulation where the memory allows. The official runs were made in float16 on 8 GPUs; here it is bfloat16.
"""

from __future__ import annotations

from mcm.recipe import DataConfig, MethodConfig, OptimConfig, Recipe, TrainingConfig

MODELSCOPE = "ali-vilab/text-to-video-ms-1.7b"
ANIMATEDIFF = "stable-diffusion-v1-5/stable-diffusion-v1-5+guoyww/animatediff-motion-adapter-v1-5-2"


def published(name: str, teacher: str, images: str | None = None) -> Recipe:
    """MCM on WebVid; images: a folder of the pictures whose look the frames shall have, none for the videos' own."""
    return Recipe(
        name=name,
        teacher=teacher,
        method=MethodConfig(name="mcm", adversary="video" if images is None else "pictures"),
        data=DataConfig(videos="./data/webvid", images=images, stride=8, frames=16),
        optim=OptimConfig(lr=5e-6, discriminator_lr=1e-4, weight_decay=0.0, warmup=500, schedule="cosine", clip=10.0),
        training=TrainingConfig(
            updates=38_500, batch=1, accumulation=128, precision="bf16", save_every=500, preview_every=5000
        ),
    )
