"""Sweeps: Ray Tune over any keys of a recipe, above all over how kept-token counts are drawn; and their Pareto front.

A sweep file in `sweeps/` imports its words from here.
"""

from mergevq_platform.sweeps.definition import (
    Grid,
    Population,
    Random,
    Rung,
    Sweep,
    Tpe,
    Trunk,
)
from mergevq_platform.sweeps.objectives import (
    Objective,
    hypervolume,
    mean_log_frechet,
    mean_probe,
    mean_psnr,
    psnr_at,
    sample_class_top1,
    sample_frechet,
    saved_tokens_at,
)
from mergevq_platform.sweeps.space import choice, integer, log_uniform, uniform
from mergevq_platform.sweeps.stopping import EarlyStopping, FrontStopping

__all__ = [
    "EarlyStopping",
    "FrontStopping",
    "Grid",
    "Objective",
    "Population",
    "Random",
    "Rung",
    "Sweep",
    "Tpe",
    "Trunk",
    "choice",
    "hypervolume",
    "integer",
    "log_uniform",
    "mean_log_frechet",
    "mean_probe",
    "mean_psnr",
    "psnr_at",
    "sample_class_top1",
    "sample_frechet",
    "saved_tokens_at",
    "uniform",
]
