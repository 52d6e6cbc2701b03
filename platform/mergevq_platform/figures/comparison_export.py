"""A comparison as one HTML page, and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

from mergevq_platform.figures.compared import (
    Entry,
    Point,
    averaged,
    best_of,
    by_label,
    common_notes,
    comparison_axes,
    loss_title,
    require_one_identity,
)
from mergevq_platform.figures.drawn import drawn
from mergevq_platform.figures.frame import COLOURS, marker_number
from mergevq_platform.figures.series import GREY, logarithmic_values

PLOTLY_MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")


def comparison_html(
    entries: Sequence[Entry],
    title: str,
    *,
    fronts: Mapping[str, Sequence[Point]] | None = None,
    said: str = "",
) -> str:
    """`pareto_figure` as an interactive HTML page with plotly's JavaScript inside.

    Of very many curves it draws the best, see `drawn`; the front is that of all. `fronts` are those of each group instead,
    by what the legend calls them, and `said` a sentence about them.
    """
    import plotly.graph_objects as go

    require_one_identity([entry.curve for entry in entries])
    every, curve = averaged(entries), entries[0].curve
    groups = list(dict.fromkeys(p.group for p in every))
    shown, omitted = drawn(entries)
    points, figure = averaged(shown), go.Figure()
    for mine in by_label(points):
        at = groups.index(mine[0].group)
        figure.add_trace(
            go.Scatter(
                x=[p.loss for p in mine],
                y=[p.gain for p in mine],
                mode="lines+markers",
                name=escape(mine[0].label),
                legendgroup=escape(mine[0].group),
                legendgrouptitle={"text": escape(mine[0].group)},
                line={"color": COLOURS[at % len(COLOURS)], "width": 1},
                marker={"symbol": PLOTLY_MARKERS[marker_number(at)], "size": 8},
                text=[f"{escape(p.label)}<br>{comparison_axes(curve).x_format.format(p.at)}" for p in mine],
                hovertemplate="%{text}<br>" + curve.frechet_key + " %{x:.4g}<br>%{y:.4g}<extra></extra>",
            )
        )
    joint = {"Pareto front": best_of(every)}
    for name, best in (fronts or joint).items():
        colour = COLOURS[groups.index(best[0].group) % len(COLOURS)] if fronts else GREY
        figure.add_trace(
            go.Scatter(
                x=[p.loss for p in best],
                y=[p.gain for p in best],
                mode="lines",
                line={"shape": "hv", "dash": "dash", "color": colour},
                name=escape(name),
                hoverinfo="skip",
            )
        )
    notes = [*common_notes(entries), *omitted, *([said] if said else [])]
    subtitle = "<br>".join(escape(line) for note in notes for line in textwrap.wrap(note, 150))
    figure.update_layout(
        template="plotly_white",
        title={"text": f"<b>{escape(title)}</b>", "subtitle": {"text": subtitle}},
        xaxis={"title": {"text": loss_title(curve).replace("\n", "<br>")}},
        yaxis={"title": {"text": comparison_axes(curve).gain_title}},
        height=720,
        margin={"t": 150},
    )
    if logarithmic_values([p.loss for p in every]):
        figure.update_xaxes(type="log")
    return figure.to_html(
        include_plotlyjs=True, full_html=True, config={"displaylogo": False, "responsive": True}
    )


def comparison_csv(entries: Sequence[Entry]) -> str:
    """All rows of all curves, with their label and group, full precision."""
    keys = list(dict.fromkeys(key for entry in entries for row in entry.curve.rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "label", "group", *keys])
    for entry in entries:
        for row in entry.curve.rows:
            writer.writerow(
                [entry.curve.run, entry.label, entry.group, *(repr(row[k]) if k in row else "" for k in keys)]
            )
    return text.getvalue()
