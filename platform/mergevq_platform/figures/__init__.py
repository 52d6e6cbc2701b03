"""The figures: a tokenizer's trade-off, its reconstructions and merged cells; a generator's samples."""

from mergevq_platform.figures.codes import code_usage_figure
from mergevq_platform.figures.compared import Entry
from mergevq_platform.figures.few_and_many import ChosenImages, few_and_many_figure, pixels
from mergevq_platform.figures.front import pareto_figure
from mergevq_platform.figures.generated import guidance_figure, image_rows
from mergevq_platform.figures.grids import (
    cluster_grid,
    cluster_overlay,
    neighbour_grid,
    reconstruction_grid,
    worst_grid,
)
from mergevq_platform.figures.interactive import tradeoff_html
from mergevq_platform.figures.page import InlineImage, ReconstructionPage, ShownReconstruction
from mergevq_platform.figures.pairs import cluster_pairs, reconstruction_pairs, tile, tiled
from mergevq_platform.figures.rate_distortion import counts_figure, rate_distortion_figure
from mergevq_platform.figures.series import probed
from mergevq_platform.figures.tradeoff import save_png, tradeoff_figure

__all__ = [
    "ChosenImages",
    "Entry",
    "InlineImage",
    "ReconstructionPage",
    "ShownReconstruction",
    "cluster_grid",
    "cluster_overlay",
    "cluster_pairs",
    "code_usage_figure",
    "counts_figure",
    "few_and_many_figure",
    "guidance_figure",
    "image_rows",
    "neighbour_grid",
    "pareto_figure",
    "pixels",
    "probed",
    "rate_distortion_figure",
    "reconstruction_grid",
    "reconstruction_pairs",
    "save_png",
    "tile",
    "tiled",
    "tradeoff_figure",
    "tradeoff_html",
    "worst_grid",
]
