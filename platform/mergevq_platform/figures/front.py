"""Several curves as points of distance and gain, with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from mergevq_platform.figures.frame import Style, framed, legend, styles
from mergevq_platform.figures.series import GREY, logarithmic_values

CROWD = 300  # points from which on markers are smaller
TURNS = 60
NAME_PIXELS = (20, 12)  # that a name takes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto_figure(entries: Sequence[Entry], title: str, families: str = "") -> Figure:
    """Fréchet distance against gain, a point per label and kept count or scale, the Pareto front drawn and named.

    Raises `InputError` for curves that were not measured alike.
    """
    require_one_identity([entry.curve for entry in entries])
    points, curve = averaged(entries), entries[0].curve
    best = best_of(points)
    figure, (axes,), handles = framed(entries, title, families, panels=1, first=[p.group for p in best])
    of_group = styles(entries)
    groups: dict[str, list[Point]] = {group: [] for group in of_group}
    for point in points:
        groups[point.group].append(point)
    for group, mine in groups.items():
        if any(p.loss_std or p.gain_std for p in mine):
            axes.errorbar(
                [p.loss for p in mine],
                [p.gain for p in mine],
                xerr=[p.loss_std for p in mine],
                yerr=[p.gain_std for p in mine],
                fmt="none",
                ecolor=of_group[group][0],
                alpha=0.4,
            )
    _scatter(axes, groups, of_group)
    (line,) = axes.step(
        [p.loss for p in best],
        [p.gain for p in best],
        where="post",
        color=GREY,
        linewidth=1.3,
        linestyle="--",
        zorder=0,
    )
    distance_and_gain(axes, curve, points)
    named_all = name_points(axes, best)
    where = "" if named_all else " where there is room"
    line.set_label(f"Pareto front, {comparison_axes(curve).x_title} named{where}")
    legend(figure, [*handles, line])
    return figure


def _scatter(axes: Axes, groups: Mapping[str, Sequence[Point]], of_group: Mapping[str, Style]) -> None:
    """The points, smaller where there are very many; groups in turn, so that none lies over all of another."""
    count = sum(map(len, groups.values()))
    size = min(34.0, max(7.0, 34.0 * CROWD / count))
    turns = 1 if count <= CROWD else max(1, TURNS // len(groups))
    for turn in range(turns):
        for group, mine in groups.items():
            colour, marker = of_group[group]
            some = mine[turn::turns]
            axes.scatter(
                [p.loss for p in some], [p.gain for p in some], c=colour, marker=marker, s=size, alpha=0.8
            )


def name_points(axes: Axes, points: Sequence[Point], **style: Any) -> bool:
    """Write the kept count, or the scale, of each point above it, where no earlier name stands; returns whether all are named.

    The scales of the axes must be set.
    """
    axes.get_xlim(), axes.get_ylim()  # as asked for here, limits are those of all that is drawn
    places = axes.transData.transform([(point.loss, point.gain) for point in points]).tolist()
    taken: list[tuple[float, float]] = []
    for point, (x, y) in zip(points, places, strict=True):
        if any(abs(x - left) < NAME_PIXELS[0] and abs(y - low) < NAME_PIXELS[1] for left, low in taken):
            continue
        taken.append((x, y))
        axes.annotate(
            f"{point.at:g}",
            (point.loss, point.gain),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            size=9,
            **style,
        )
    return len(taken) == len(points)


def distance_and_gain(axes: Axes, curve: Evaluation, points: Sequence[Point]) -> None:
    """Scales and titles of axes that hold these points of curves such as `curve`."""
    if logarithmic_values([p.loss for p in points]):
        axes.set_xscale("log")
    axes.margins(0.08)
    axes.set_xlabel(loss_title(curve))
    axes.set_ylabel(comparison_axes(curve).gain_title)
