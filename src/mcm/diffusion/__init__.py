"""The mathematics of diffusion, in torch alone: noise paths, grids, solver steps, consistency function."""

from mcm.diffusion.consistency import ConsistencyFunction
from mcm.diffusion.distances import distance, l1, l2, pseudo_huber
from mcm.diffusion.grid import SolverGrid
from mcm.diffusion.paths import (
    Denoised,
    NoisePath,
    RectifiedFlow,
    VariancePreserving,
    expand,
    path_from_config,
)
from mcm.diffusion.solvers import ddim_step, dpmpp_2m_step, euler_step, guide, midpoint_step

__all__ = [
    "ConsistencyFunction",
    "Denoised",
    "NoisePath",
    "RectifiedFlow",
    "SolverGrid",
    "VariancePreserving",
    "ddim_step",
    "distance",
    "dpmpp_2m_step",
    "euler_step",
    "expand",
    "guide",
    "l1",
    "l2",
    "midpoint_step",
    "path_from_config",
    "pseudo_huber",
]
