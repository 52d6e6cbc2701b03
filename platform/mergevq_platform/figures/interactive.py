"""The trade-off to point at: one HTML file with everything inside, so that it opens without a network."""

from __future__ import annotations

from typing import Any

from mergevq_platform.curves import Curve
from mergevq_platform.figures.series import (
    Series,
    kept_counts,
    left_title,
    notes,
    right_title,
    tradeoff_series,
)
from mergevq_platform.figures.tradeoff import FAINT, GREY, LEFT, RIGHT

DASHES = {"main": "solid", "second": "dash", "baseline": "dashdot", "floor": "dot"}


def tradeoff_html(curve: Curve) -> str:
    """`tradeoff_figure` as one HTML page (about 5 MB) with plotly's JavaScript inside.

    A click on a legend entry hides its line; pointing at a kept count shows every metric of its row. Raises
    `InputError` for a curve without rows.
    """
    import plotly.graph_objects as go  # a second of import that only this page needs

    keeps = kept_counts(curve)
    figure = go.Figure()
    for line in tradeoff_series(curve):
        for trace in _traces(line, keeps, go):
            figure.add_trace(trace)
    ticks = [
        f"{row['keep']:.0f}<br>{row['merge_ratio']:.0%}" if "merge_ratio" in row else f"{row['keep']:.0f}"
        for row in curve.rows
    ]
    figure.update_layout(
        template="plotly_white",
        title={"text": f"What every kept token buys: {curve.run}", "subtitle": {"text": "<br>".join(notes(curve))}},
        xaxis={"title": "kept tokens (log scale; share merged away)", "type": "log", "tickvals": keeps, "ticktext": ticks},
        yaxis={"title": {"text": left_title(curve), "font": {"color": LEFT}}, "rangemode": "tozero", "tickfont": {"color": LEFT}},
        yaxis2={
            "title": {"text": right_title(curve), "font": {"color": RIGHT}}, "tickfont": {"color": RIGHT},
            "overlaying": "y", "side": "right", "rangemode": "tozero", "showgrid": False,
        },
        legend={"orientation": "h", "y": -0.22, "x": 0.5, "xanchor": "center"},
        hovermode="x unified",
        margin={"t": 130, "b": 140},
        height=640,
    )  # fmt: skip
    return figure.to_html(
        include_plotlyjs=True, full_html=True, config={"displaylogo": False, "responsive": True}
    )


def _traces(line: Series, keeps: list[int], go: Any) -> list[Any]:
    main = {"left": LEFT, "right": RIGHT}[line.axis]
    colour = {"main": main, "second": main, "baseline": GREY, "floor": FAINT}[line.role]
    shared = {"x": keeps, "yaxis": "y" if line.axis == "left" else "y2", "legendgroup": line.key}
    traces = []
    interval = ""
    if line.low is not None and line.high is not None:
        outline = {"x": [*keeps, *reversed(keeps)], "y": [*line.high, *reversed(line.low)]}
        traces.append(
            go.Scatter(
                **(shared | outline), fill="toself", fillcolor=colour, opacity=0.16, line={"width": 0}, mode="lines",
                hoverinfo="skip", showlegend=False,
            )
        )  # fmt: skip
        interval = " (%{customdata[0]:.1f} to %{customdata[1]:.1f})"
    traces.append(
        go.Scatter(
            **shared, y=line.values, name=line.label, mode="lines" if line.role == "floor" else "lines+markers",
            line={"color": colour, "dash": DASHES[line.role], "width": 2.5},
            customdata=list(zip(line.low, line.high, strict=True)) if line.low and line.high else None,
            hovertemplate="%{y:.4g}" + interval,
        )
    )  # fmt: skip
    return traces
