"""Curves beside the paper's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergevq.errors import InputError
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
    from matplotlib.figure import Figure

# MergeVQ (arXiv 2504.00999), Table 4: kept tokens in training -> (rFID, linear probe top-1 in percent), ImageNet-1K.
PAPER_TABLE_4: dict[str, dict[int, tuple[float, float]]] = {
    "G+R": {
        256: (2.15, 48.6),
        196: (2.53, 49.5),
        144: (3.07, 51.0),
        100: (4.62, 51.2),
        64: (6.51, 51.8),
        36: (8.94, 52.1),
    },
}


def paper_figure(entries: Sequence[Entry], title: str) -> Figure:
    """The curves beside the paper's Table 4, each on axes of its own: the shapes compare, the numbers do not.

    Raises `InputError` for curves that were not measured alike, and for generators'.
    """
    require_one_identity([entry.curve for entry in entries])
    of_group = styles(entries)
    entries, omitted = drawn(entries)
    points, curve = averaged(entries), entries[0].curve
    if not isinstance(curve, Curve):
        raise InputError("the paper's Table 4 is of tokenizers: leave --paper out for generators")
    figure, (ours, paper), handles = framed(entries, title, "", panels=2, more=omitted, of_group=of_group)
    for mine in by_label(points):
        colour, marker = of_group[mine[0].group]
        ours.plot([p.loss for p in mine], [p.gain for p in mine], color=colour, marker=marker, linewidth=1.2)
        for p in mine:
            ours.annotate(
                f"{p.at:g}", (p.loss, p.gain), xytext=(4, 4), textcoords="offset points", size=8, color=colour
            )
    if logarithmic_values([p.loss for p in points]):
        ours.set_xscale("log")
    ours.set_xlabel(loss_title(curve))
    ours.set_ylabel(comparison_axes(curve).gain_title)
    for variant, rows in PAPER_TABLE_4.items():
        (line,) = paper.plot(*zip(*rows.values(), strict=True), color=GREY, marker="h", linewidth=1.2)
        line.set_label(f"MergeVQ {variant}, paper's Table 4 (ImageNet-1K; not comparable with other data)")
        handles.append(line)
        for keep, point in rows.items():
            paper.annotate(str(keep), point, xytext=(4, 4), textcoords="offset points", size=8, color=GREY)
    paper.set_xlabel("rFID on ImageNet-1K (Inception features)")
    paper.set_ylabel("linear probe on ImageNet-1K, top-1 %")
    legend(figure, handles)
    return figure
