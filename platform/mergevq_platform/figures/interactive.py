"""The interactive trade-off: one HTML file with everything inside, so that it opens without a network."""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.figures.series import (
    LEFT,
    RIGHT,
    Series,
    kept_counts,
    left_title,
    logarithmic,
    notes,
    right_title,
    ticks,
    tradeoff_series,
)

HEIGHT = 700  # screen pixels
DASHES = {
    "main": "solid",
    "second": "dash",
    "baseline": "dashdot",
    "second_baseline": "5px,5px",
    "floor": "dot",
}
MARKERS = {
    "main": "circle",
    "second": "square",
    "baseline": "triangle-up",
    "second_baseline": "triangle-down",
}


def tradeoff_html(curve: Curve) -> str:
    """`tradeoff_figure` as one HTML page (about 5 MB) with plotly's JavaScript inside.

    A click on a legend entry hides its line; pointing at a kept count shows every metric of its row. Raises
    `InputError` for a curve without rows.
    """
    import plotly.graph_objects as go  # a second of import that only this page needs

    keeps, lines = kept_counts(curve), tradeoff_series(curve)
    figure = go.Figure([trace for line in lines for trace in _traces(line, keeps, go)])
    if lines:
        figure.add_trace(_other_metrics(curve, keeps, lines, go))
    said = [escape(line) for note in notes(curve) for line in textwrap.wrap(note, 150)]
    figure.update_layout(
        template="plotly_white",
        title={
            "text": f"<b>Trade-off over kept tokens: {escape(curve.run)}</b>",
            "subtitle": {"text": "<br>".join(said)},
            "x": 0.06,
            "y": 1 - 34 / HEIGHT,
            "yanchor": "top",
        },
        xaxis={
            "title": {"text": "kept tokens (log scale); below each count, the share of tokens merged away"},
            "type": "log",
            "tickvals": keeps,
            "ticktext": ticks(curve, "<br>"),
        },
        yaxis=_axis(left_title(curve), LEFT)
        | ({"type": "log"} if logarithmic([line for line in lines if line.axis == "left"]) else {}),
        yaxis2=_axis(right_title(curve), RIGHT)
        | {"overlaying": "y", "side": "right", "showgrid": False, "tickmode": "auto"},
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.2},
        hovermode="x unified",
        margin={"t": 82 + 16 * len(said), "b": 140, "l": 110, "r": 90},
        height=HEIGHT,
    )
    return figure.to_html(
        include_plotlyjs=True, full_html=True, config={"displaylogo": False, "responsive": True}
    )


def _axis(title: list[str], colour: str) -> dict[str, Any]:
    text = {"text": "<br>".join(escape(line) for line in title), "font": {"color": colour}}
    return {
        "title": text,
        "tickfont": {"color": colour},
        "rangemode": "normal" if "dB" in title[0] else "tozero",
    }


def _traces(line: Series, keeps: list[int], go: Any) -> list[Any]:
    shared = {"yaxis": "y" if line.axis == "left" else "y2", "legendgroup": line.key}
    traces, interval, bars, bounds = [], "", None, None
    if line.low is not None and line.high is not None:
        if line.role == "second":  # two bands would hide each other
            up = [high - value for high, value in zip(line.high, line.values, strict=True)]
            down = [value - low for low, value in zip(line.low, line.values, strict=True)]
            bars = {"type": "data", "array": up, "arrayminus": down, "thickness": 1.2, "width": 4}
        elif line.role != "second_baseline":
            outline = {"x": [*keeps, *reversed(keeps)], "y": [*line.high, *reversed(line.low)]}
            band = {
                "fill": "toself",
                "fillcolor": line.colour,
                "opacity": 0.16,
                "mode": "lines",
                "line": {"width": 0},
            }
            traces.append(go.Scatter(**shared, **outline, **band, hoverinfo="skip", showlegend=False))
        interval, bounds = (
            " (%{customdata[0]:.1f} to %{customdata[1]:.1f})",
            list(zip(line.low, line.high, strict=True)),
        )
    traces.append(
        go.Scatter(
            **shared,
            x=keeps,
            y=line.values,
            name=line.label,
            mode="lines" if line.role == "floor" else "lines+markers",
            line={"color": line.colour, "dash": DASHES[line.role], "width": 2.5},
            marker={"symbol": MARKERS.get(line.role), "size": 8},
            error_y=bars,
            customdata=bounds,
            hovertemplate="%{y:.4g}" + interval,
        )
    )
    return traces


def _other_metrics(curve: Curve, keeps: list[int], lines: list[Series], go: Any) -> Any:
    # An invisible line: in a unified hover label every trace has a place, this one lists what has no axis, and the
    # kept count itself, because the label's head is the tick's text, which a crowded axis leaves out.
    drawn = {f"{line.key}{bound}" for line in lines for bound in ("", "_low", "_high")}
    said = []
    for row in curve.rows:
        rest = [f"{escape(key)} {value:.5g}" for key, value in row.items() if key not in drawn]
        said.append("<br>".join(", ".join(rest[i : i + 3]) for i in range(0, len(rest), 3)))
    return go.Scatter(
        x=keeps,
        y=lines[0].values,
        yaxis="y" if lines[0].axis == "left" else "y2",
        name="also",
        mode="markers",
        marker={"opacity": 0, "color": "white"},
        customdata=said,
        hovertemplate="%{customdata}",
        showlegend=False,
    )
