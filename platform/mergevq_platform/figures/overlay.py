"""Several curves over kept tokens, or over guidance scales, in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.figures.compared import (
    Entry,
    averaged,
    by_label,
    comparison_axes,
    loss_title,
    require_one_identity,
)
from mergevq_platform.figures.drawn import drawn
from mergevq_platform.figures.frame import framed, legend, styles
from mergevq_platform.figures.series import GREY, logarithmic_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def overlay_figure(entries: Sequence[Entry], title: str, families: str = "") -> Figure:
    """Fréchet distance (left) and gain (right) over kept tokens or scales, one line per label, bars over seeds.

    Of very many labels it draws the best, see `drawn`, and says so. Raises `InputError` for curves that were not measured alike.
    """
    require_one_identity([entry.curve for entry in entries])
    of_group = styles(entries)  # of all of them: a family keeps its colour whatever is drawn
    entries, omitted = drawn(entries)
    points, curve = averaged(entries), entries[0].curve
    figure, (left, right), handles = framed(
        entries, title, families, panels=2, more=omitted, of_group=of_group
    )
    for axes, value, spread in ((left, "loss", "loss_std"), (right, "gain", "gain_std")):
        for mine in by_label(points):
            colour, marker = of_group[mine[0].group]
            axes.errorbar(
                [p.at for p in mine],
                [getattr(p, value) for p in mine],
                yerr=[getattr(p, spread) for p in mine] if any(getattr(p, spread) for p in mine) else None,
                color=colour,
                marker=marker,
                markersize=4.5,
                linewidth=1.5,
                alpha=0.85,
                capsize=2.5,
            )
        places = _spread_ticks(sorted({p.at for p in points}))
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(f"{comparison_axes(curve).x_title} (log scale)")
    left.set_ylabel(loss_title(curve))
    if logarithmic_values([p.loss for p in points]):
        left.set_yscale("log")
    right.set_ylabel(comparison_axes(curve).gain_title)
    if isinstance(curve, Curve):
        _baseline(right, curve)
    legend(figure, handles)
    return figure


def _baseline(axes: Axes, curve: Curve) -> None:
    rows = [row for row in curve.rows if "probe_top1_untrained" in row]
    if rows:
        axes.plot(
            [row["keep"] for row in rows],
            [row["probe_top1_untrained"] for row in rows],
            color=GREY,
            linestyle="-.",
            linewidth=1.2,
        )
        axes.annotate(
            "untrained encoder",
            (rows[0]["keep"], rows[0]["probe_top1_untrained"]),
            xytext=(2, -12),
            textcoords="offset points",
            color=GREY,
            size=9,
        )


def _spread_ticks(counts: Sequence[float]) -> list[float]:
    shown: list[float] = []
    room = 0.06 * math.log(max(counts) / min(counts) or 1) if len(counts) > 1 else 0
    for count in counts:
        if not shown or math.log(count / shown[-1]) >= room:
            shown.append(count)
    return shown
