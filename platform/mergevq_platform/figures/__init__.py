"""The figures of a curve: the trade-off, what the tokenizer repaints, and which cells it merges."""

from mergevq_platform.figures.codes import code_usage_figure
from mergevq_platform.figures.comparison import Entry, pareto_figure
from mergevq_platform.figures.grids import cluster_grid, neighbour_grid, reconstruction_grid, worst_grid
from mergevq_platform.figures.interactive import tradeoff_html
from mergevq_platform.figures.series import probed
from mergevq_platform.figures.tradeoff import save_png, tradeoff_figure

__all__ = [
    "Entry",
    "cluster_grid",
    "code_usage_figure",
    "neighbour_grid",
    "pareto_figure",
    "probed",
    "reconstruction_grid",
    "save_png",
    "tradeoff_figure",
    "tradeoff_html",
    "worst_grid",
]
