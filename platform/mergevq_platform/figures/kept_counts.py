"""The kept counts that a training drew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergevq_platform.figures.frame import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn_figure(drawn: Mapping[int, int], run: str) -> Figure:
    """The histogram of the kept counts that a training drew."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=100, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    counts = sorted(drawn)
    axes.bar([str(keep) for keep in counts], [drawn[keep] for keep in counts], color=COLOURS[0])
    axes.set_xlabel("kept tokens")
    axes.set_ylabel("optimizer steps")
    axes.set_title(f"Kept counts drawn: {run}", size=11, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
