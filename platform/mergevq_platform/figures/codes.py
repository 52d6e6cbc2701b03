"""Code usage: every code's frequency by rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mergevq_platform.figures.series import GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def code_usage_figure(counts: Mapping[int, np.ndarray]) -> Figure:
    """Frequencies of codes, most frequent first, a line per kept count; `counts` (V,) of each kept count.

    A flat line that reaches far to the right is a vocabulary in full use; the dotted line is equal use of all codes.
    """
    keeps = sorted(counts, reverse=True)
    vocabulary = len(counts[keeps[0]])
    from matplotlib.figure import Figure

    width, below = (
        8.4,
        0.62 + 0.21 * math.ceil((len(keeps) + 1) / 2),
    )  # inches; below the axes: their label, the legend
    height = 3.9 + below
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    axes = figure.add_axes((0.09, below / height, 0.89, 1 - (below + 0.36) / height))
    shades = np.linspace(0.05, 0.8, len(keeps))
    for keep, shade in zip(keeps, shades, strict=True):
        total = counts[keep].sum()
        used = np.sort(counts[keep][counts[keep] > 0])[::-1]
        label = f"{keep} kept: {len(used):,} codes ({len(used) / vocabulary:.1%}) in {total:,} tokens"
        ranks = np.arange(1, len(used) + 1)
        # Thousands of ranks share a pixel: about 200 points a line, evenly in log rank, are the same line.
        shown = np.unique(np.geomspace(1, len(used), 200).round().astype(int)) - 1
        axes.plot(ranks[shown], used[shown] / total, color=_colour(shade), linewidth=1.8, label=label)
    axes.axhline(
        1 / vocabulary, color=GREY, linestyle=":", linewidth=1.4, label=f"equal use of {vocabulary:,} codes"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, vocabulary)
    axes.set_xlabel("rank of the code, most frequent first (log scale)")
    axes.set_ylabel("share of all tokens (log scale)")
    axes.set_title("How evenly the vocabulary is used", loc="left", weight="bold")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def _colour(shade: float) -> tuple[float, float, float]:
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["viridis"](shade)
    return red, green, blue
