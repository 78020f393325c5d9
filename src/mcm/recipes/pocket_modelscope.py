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
        # The pocket teachers' usual guidance is 3 (w = 2); the paper's w ~ U[5, 15] saturates them. Eight grid points
        # with steps of second order, since a short run does not carry what is clean over 50 (docs/log.md).
        # A student that cannot make a clip yet teaches itself nothing, nor does a discriminator that cannot tell: both
        # come in over the first half of a run.
        method=MethodConfig(
            name="mcm", solver_steps=8, solver="midpoint", zero_terminal_snr=True, guidance_min=1.0, guidance_max=3.0,
            adversary="video", adversarial_weight=0.1, adversarial_start=0.5, generated_ramp=0.5, target_decay=0.8,
        ),
        data=DataConfig(videos="pocket:broadcast"),
        student=StudentConfig(rank=32, alpha=32),
        optim=OptimConfig(lr=1e-3, discriminator_lr=2e-3, warmup=10),
        training=TrainingConfig(updates=200, batch=8, average=0.15, save_every=25, preview_every=50, log_every=5),
        # Its colours would hide from the discriminator whether brightness and contrast drift.
        discriminator=DiscriminatorConfig(backbone="pocket-dinov2", augmentation_policy=("translation", "cutout")),
    )
