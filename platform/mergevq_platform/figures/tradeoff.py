"""The picture of the trade-off: what reconstruction loses and the probe gains as tokens are merged."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mergevq_platform.curves import Curve
from mergevq_platform.figures.series import (
    Series,
    kept_counts,
    left_title,
    notes,
    right_title,
    tradeoff_series,
)

# Okabe & Ito's palette: told apart by colour-blind readers, and in grey by line style and marker.
LEFT, RIGHT, GREY, FAINT = "#0072b2", "#d55e00", "#555555", "#8a8a8a"
STYLES = {
    "main": ("-", "o", 2.2),
    "second": ("--", "s", 1.6),
    "baseline": ("-.", "^", 1.6),
    "floor": (":", "", 1.6),
}
LOG_FROM = 30  # ratio of the largest to the smallest distance from which the axis is logarithmic


def tradeoff_figure(curve: Curve) -> Figure:
    """Both axes over kept tokens: Fréchet distance (left) and linear probe (right) with interval and baselines.

    Raises `InputError` for a curve without rows.
    """
    keeps, lines = kept_counts(curve), tradeoff_series(curve)
    said = [line for note in notes(curve) for line in textwrap.wrap(note, 108)]
    legend_rows = math.ceil(len(lines) / 2)
    top, bottom = 0.62 + 0.21 * len(said), 0.98 + 0.27 * legend_rows  # inches around the axes
    width, height = 9.6, 4.3 + top + bottom
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    left = figure.add_axes((0.1, bottom / height, 0.8, 1 - (top + bottom) / height))
    right = left.twinx()
    handles = []
    for line in lines:
        handles += _draw(left if line.axis == "left" else right, keeps, line)
    _kept_axis(left, curve, keeps)
    _value_axis(
        left, [line for line in lines if line.axis == "left"], left_title(curve) + " (lower is better)", LEFT
    )
    _value_axis(
        right,
        [line for line in lines if line.axis == "right"],
        right_title(curve) + " (higher is better)",
        RIGHT,
    )
    left.grid(axis="both", color="#e6e6e6", linewidth=0.8)
    left.set_axisbelow(True)
    for spine in ("top",):
        left.spines[spine].set_visible(False)
        right.spines[spine].set_visible(False)

    figure.text(
        0.1, 1 - 0.2 / height, f"What every kept token buys: {curve.run}", size=14, weight="bold", va="top"
    )
    figure.text(0.1, 1 - 0.5 / height, "\n".join(said), size=10, color=GREY, va="top", linespacing=1.35)
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=2,
        frameon=False,
        fontsize=10,
        bbox_to_anchor=(0.5, 0.08 / height),
    )
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG at its own size, replacing the file in one step."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", metadata={"Software": None})  # equal figures give equal files
    temporary.rename(path)


def _draw(axes: Axes, keeps: list[int], line: Series) -> list:
    style, marker, width = STYLES[line.role]
    colour = (
        {"left": LEFT, "right": RIGHT}[line.axis]
        if line.role in ("main", "second")
        else GREY
        if line.role == "baseline"
        else FAINT
    )
    handles = axes.plot(
        keeps,
        line.values,
        style,
        marker=marker,
        color=colour,
        linewidth=width,
        markersize=5.5,
        label=line.label,
    )
    if line.low is not None and line.high is not None:
        axes.fill_between(keeps, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
    return handles


def _kept_axis(axes: Axes, curve: Curve, keeps: list[int]) -> None:
    # Kept counts are spread evenly in log K: on a linear axis the interesting half would be a seventh of the width.
    axes.set_xscale("log", base=2)
    axes.set_xticks(keeps, [_tick(row) for row in curve.rows])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("kept tokens (log scale; below each count the share of tokens merged away)", size=10.5)
    if len(keeps) == 1:
        axes.set_xlim(keeps[0] / 2, keeps[0] * 2)


def _tick(row: dict[str, float]) -> str:
    ratio = row.get("merge_ratio")
    return f"{row['keep']:.0f}" if ratio is None else f"{row['keep']:.0f}\n{ratio:.0%}"


def _value_axis(axes: Axes, lines: list[Series], title: str, colour: str) -> None:
    axes.set_ylabel("\n".join(textwrap.wrap(title, 52)), color=colour, size=10.5)
    axes.tick_params(axis="y", colors=colour)
    shown = [
        value
        for line in lines
        for value in (*line.values, *(line.high or ()), *(line.low or ()))
        if math.isfinite(value)
    ]
    if not shown:
        return
    if colour == LEFT and min(shown) > 0 and max(shown) > LOG_FROM * min(shown):
        axes.set_yscale("log")
        axes.set_ylabel(axes.get_ylabel() + ", log scale")
    elif "dB" in title:
        axes.margins(y=0.12)
    else:
        axes.set_ylim(0, 1.08 * max(shown) or 1)  # from 0: a gap between two points looks as large as it is
