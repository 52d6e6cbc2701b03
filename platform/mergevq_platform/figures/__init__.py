"""The figures: a tokenizer's trade-off, what it repaints and merges; what a generator paints."""

from mergevq_platform.figures.generated import guidance_figure, picture_rows
from mergevq_platform.figures.grids import cluster_grid, reconstruction_grid
from mergevq_platform.figures.interactive import tradeoff_html
from mergevq_platform.figures.tradeoff import save_png, tradeoff_figure

__all__ = [
    "cluster_grid",
    "guidance_figure",
    "picture_rows",
    "reconstruction_grid",
    "save_png",
    "tradeoff_figure",
    "tradeoff_html",
]
