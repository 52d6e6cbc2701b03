"""The trade-off to point at: one HTML file with everything inside, so that it opens without a network."""

from __future__ import annotations

from html import escape
from typing import Any

from mergevq_platform.curves import Curve
from mergevq_platform.figures.series import (
    LEFT,
    RIGHT,
    Series,
    kept_counts,
    left_title,
    notes,
    right_title,
    ticks,
    tradeoff_series,
)

DASHES = {"main": "solid", "second": "dash", "baseline": "dashdot", "floor": "dot"}


def tradeoff_html(curve: Curve) -> str:
    """`tradeoff_figure` as one HTML page (about 5 MB) with plotly's JavaScript inside.

    A click on a legend entry hides its line; pointing at a kept count shows all metrics that tables show. Raises
    `InputError` for a curve without rows.
    """
    import plotly.graph_objects as go  # a second of import that only this page needs

    keeps, lines = kept_counts(curve), tradeoff_series(curve)
    figure = go.Figure([trace for line in lines for trace in _traces(line, keeps, go)])
    if lines:
        figure.add_trace(_other_metrics(curve, keeps, lines, go))
    subtitle = "<br>".join(escape(note) for note in notes(curve))
    figure.update_layout(
        template="plotly_white",
        title={
            "text": f"<b>What every kept token buys: {escape(curve.run)}</b>",
            "subtitle": {"text": subtitle},
            "x": 0.06,
            "y": 0.95,
            "yanchor": "top",
        },
        xaxis={
            "title": {"text": "kept tokens (log scale); below each count, the share of tokens merged away"},
            "type": "log",
            "tickvals": keeps,
            "ticktext": ticks(curve, "<br>"),
        },
        yaxis=_axis(left_title(curve), LEFT),
        yaxis2=_axis(right_title(curve), RIGHT)
        | {"overlaying": "y", "side": "right", "showgrid": False, "tickmode": "auto"},
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.2},
        hovermode="x unified",
        margin={"t": 130, "b": 140, "l": 110, "r": 90},
        height=660,
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
    traces, interval, bounds = [], "", None
    if line.low is not None and line.high is not None:
        outline = {"x": [*keeps, *reversed(keeps)], "y": [*line.high, *reversed(line.low)]}
        if line.role != "second":  # two bands would hide each other
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
            customdata=bounds,
            hovertemplate="%{y:.4g}" + interval,
        )
    )
    return traces


def _other_metrics(curve: Curve, keeps: list[int], lines: list[Series], go: Any) -> Any:
    # An invisible line: in a unified hover label every trace has a place, this one lists what has no axis.
    drawn = {"keep", *(line.key for line in lines)}
    columns = [column for column in curve.shown() if column[0] not in drawn]
    said = [
        ", ".join(f"{escape(title)} {row[key]:{form}}" for key, title, form in columns if key in row)
        for row in curve.rows
    ]
    return go.Scatter(
        x=keeps,
        y=lines[0].values,
        yaxis="y" if lines[0].axis == "left" else "y2",
        name="also",
        mode="markers",
        marker={"opacity": 0},
        customdata=said,
        hovertemplate="%{customdata}",
        showlegend=False,
    )
