"""The trade-off curve: Fréchet distance and probe accuracy over kept tokens."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergevq.files import whole_file
from mergevq_platform.data.images.decoding import FIGURE
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.figures.series import (
    GREY,
    LEFT,
    RIGHT,
    Series,
    finite,
    kept_counts,
    left_title,
    logarithmic,
    notes,
    right_title,
    ticks,
    tradeoff_series,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLES = {
    "main": ("-", "o", 2.2),
    "second": ("--", "s", 1.6),
    "baseline": ("-.", "^", 1.6),
    "second_baseline": ((0, (2, 2)), "v", 1.2),
    "floor": (":", "", 1.6),
}
LEFT_EDGE = 0.12  # of the width: room for a title of four lines


def tradeoff_figure(curve: Curve) -> Figure:
    """Both axes over kept tokens: Fréchet distance (left) and linear probe (right) with interval and baselines.

    Raises `InputError` for a curve without rows.
    """
    keeps, lines = kept_counts(curve), tradeoff_series(curve)
    said = [line for note in notes(curve) for line in textwrap.wrap(note, 112, break_on_hyphens=False)]
    title = textwrap.wrap(f"Trade-off over kept tokens: {curve.run}", 72)
    heading = 0.25 + 0.25 * len(title)  # inches down to the notes
    above, below = heading + 0.12 + 0.225 * len(said), 0.98 + 0.13 * (len(lines) + len(lines) % 2)
    width, height = 9.6, 4.3 + above + below
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    left = figure.add_axes((LEFT_EDGE, below / height, 0.78, 1 - (above + below) / height))
    right = left.twinx()
    handles = [_draw(left if line.axis == "left" else right, keeps, line) for line in lines]
    _kept_axis(left, curve, keeps)
    _distance_axis(left, [line for line in lines if line.axis == "left"], left_title(curve))
    _gain_axis(right, [line for line in lines if line.axis == "right"], right_title(curve))
    left.grid(color="#e6e6e6", linewidth=0.8)
    left.set_axisbelow(True)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
    plain: dict[str, Any] = {"va": "top", "parse_math": False}  # a dollar in a name is a dollar
    figure.text(LEFT_EDGE, 1 - 0.2 / height, "\n".join(title), size=14, weight="bold", **plain)
    figure.text(
        LEFT_EDGE, 1 - heading / height, "\n".join(said), size=10, color=GREY, linespacing=1.35, **plain
    )
    anchor = (0.5, 0.08 / height)
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=anchor, ncols=2, frameon=False, fontsize=10
    )
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG at its own size, replacing the file in one step."""
    with whole_file(path) as temporary:
        # No version: equal figures give equal files. Compressed in half of the usual time, to 6% more bytes: trials wait for it.
        figure.savefig(
            temporary, format="png", metadata={"Software": FIGURE}, pil_kwargs={"compress_level": 3}
        )


def _draw(axes: Axes, keeps: list[int], line: Series) -> Line2D:
    style, marker, width = STYLES[line.role]
    alone = len(keeps) == 1  # a line or band through one point would be nothing
    marker = marker or ("_" if alone else "")
    (drawn,) = axes.plot(
        keeps,
        line.values,
        linestyle=style,
        marker=marker,
        markersize=5.5,
        color=line.colour,
        linewidth=width,
        label=line.label,
    )
    if line.low is not None and line.high is not None and line.role != "second_baseline":
        if line.role == "second":  # two bands would hide each other
            axes.vlines(keeps, line.low, line.high, color=line.colour, linewidth=1.2)
            for ends in (line.low, line.high):
                axes.plot(keeps, ends, linestyle="", marker="_", markersize=7, color=line.colour, label="_")
        elif alone:
            axes.vlines(keeps, line.low, line.high, color=line.colour, linewidth=6, alpha=0.25)
        else:
            axes.fill_between(keeps, line.low, line.high, color=line.colour, alpha=0.16, linewidth=0)
    return drawn


def _kept_axis(axes: Axes, curve: Curve, keeps: list[int]) -> None:
    # Kept counts are spread about evenly in log K.
    axes.set_xscale("log", base=2)
    axes.set_xticks(keeps, ticks(curve, "\n"))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("kept tokens (log scale); below each count, the share of tokens merged away", size=10.5)
    if len(keeps) == 1:
        axes.set_xlim(keeps[0] / 2, keeps[0] * 2)


def _distance_axis(axes: Axes, lines: list[Series], title: list[str]) -> None:
    _titled(axes, title, LEFT)
    shown = finite(lines)
    if logarithmic(lines):
        axes.set_yscale("log")
        axes.set_ylabel(f"{axes.get_ylabel()}, log scale")
    elif shown:
        axes.set_ylim(0, 1.08 * max(shown) or 1)  # from 0: a gap between two points looks as large as it is


def _gain_axis(axes: Axes, lines: list[Series], title: list[str]) -> None:
    _titled(axes, title, RIGHT)
    shown = finite(lines)
    if any(line.key == "psnr" for line in lines):
        axes.margins(y=0.12)  # decibels have no 0 to start from
    elif shown:
        axes.set_ylim(0, min(1.08 * max(shown), 102) or 1)


def _titled(axes: Axes, title: list[str], colour: str) -> None:
    axes.set_ylabel("\n".join(title), color=colour, size=10.5)
    axes.tick_params(axis="y", colors=colour)
