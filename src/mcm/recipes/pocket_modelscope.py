"""The small ModelScope of the pocket laboratory, distilled with MCM on a laptop's CPU.

Command: `mcm distill pocket-modelscope`
Data: rendered clips as web video shows them (broadcast). With `--images pocket:studio` (toon, relief, or a folder of
your own) the frames take the look of those pictures instead.
Cost and score: measured, with the machine they were measured on, in benchmarks/.
"""

from __future__ import annotations

from mcm.recipe import (
    DataConfig,
    DiscriminatorConfig,
    MethodConfig,
    OptimConfig,
    Recipe,
    StudentConfig,
    TrainingConfig,
)


def recipe() -> Recipe:
    """The recipe "pocket-modelscope"."""
    return Recipe(
        name="pocket-modelscope-mcm",
        teacher="pocket-modelscope",
        # The pocket teachers' usual guidance is 3 (w = 2); the paper's w ~ U[5, 15] saturates them.
        method=MethodConfig(name="mcm", adversary="video", guidance_min=1.0, guidance_max=3.0, adversarial_weight=0.2),
        data=DataConfig(videos="pocket:broadcast"),
        student=StudentConfig(rank=32, alpha=32),
        optim=OptimConfig(lr=5e-4, discriminator_lr=5e-4, warmup=10),
        training=TrainingConfig(updates=150, batch=8, save_every=25, preview_every=50, log_every=5),
        discriminator=DiscriminatorConfig(backbone="pocket-dinov2"),
    )
