"""Several curves as points of distance and gain, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergevq_platform.figures.compared import (
    Entry,
    Evaluation,
    Point,
    averaged,
    best_of,
    comparison_axes,
    loss_title,
    require_one_identity,
)
from mergevq_platform.figures.frame import framed, legend, styles
from mergevq_platform.figures.series import GREY, logarithmic_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto_figure(entries: Sequence[Entry], title: str, families: str = "") -> Figure:
    """Fréchet distance against gain, a point per label and kept count or scale, the Pareto front drawn and named.

    Raises `InputError` for curves that were not measured alike.
    """
    require_one_identity([entry.curve for entry in entries])
    points, curve = averaged(entries), entries[0].curve
    figure, (axes,), handles = framed(entries, title, families, panels=1)
    for group, (colour, marker) in styles(entries).items():
        mine = [p for p in points if p.group == group]
        if any(p.loss_std or p.gain_std for p in mine):
            axes.errorbar(
                [p.loss for p in mine],
                [p.gain for p in mine],
                xerr=[p.loss_std for p in mine],
                yerr=[p.gain_std for p in mine],
                fmt="none",
                ecolor=colour,
                alpha=0.4,
            )
        axes.scatter([p.loss for p in mine], [p.gain for p in mine], c=colour, marker=marker, s=34, alpha=0.8)
    best = best_of(points)
    (line,) = axes.step(
        [p.loss for p in best],
        [p.gain for p in best],
        where="post",
        color=GREY,
        linewidth=1.3,
        linestyle="--",
        zorder=0,
        label=f"Pareto front, {comparison_axes(curve).x_title} named",
    )
    name_points(axes, best)
    distance_and_gain(axes, curve, points)
    legend(figure, [*handles, line])
    return figure


def name_points(axes: Axes, points: Sequence[Point], **style: Any) -> None:
    """Write the kept count, or the scale, of each point above it."""
    for point in points:
        axes.annotate(
            f"{point.at:g}",
            (point.loss, point.gain),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            size=9,
            **style,
        )


def distance_and_gain(axes: Axes, curve: Evaluation, points: Sequence[Point]) -> None:
    """Scales and titles of axes that hold these points of curves such as `curve`."""
    if logarithmic_values([p.loss for p in points]):
        axes.set_xscale("log")
    axes.margins(0.08)
    axes.set_xlabel(loss_title(curve))
    axes.set_ylabel(comparison_axes(curve).gain_title)
