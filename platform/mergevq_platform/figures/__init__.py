"""The figures of a curve: the trade-off, what the tokenizer repaints, and which cells it merges."""

from mergevq_platform.figures.grids import cluster_grid, reconstruction_grid
from mergevq_platform.figures.interactive import tradeoff_html
from mergevq_platform.figures.tradeoff import save_png, tradeoff_figure

__all__ = ["cluster_grid", "reconstruction_grid", "save_png", "tradeoff_figure", "tradeoff_html"]
