"""Several curves in one picture: overlaid over kept tokens, and against each other with the Pareto front.

A generator's curve runs over guidance scales instead.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mergevq.errors import InputError
from mergevq_platform.evaluation.curve import Curve, lacking_sentences
from mergevq_platform.figures.series import GREY, few_pictures, logarithmic_values, notes, probed
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.pareto import front

# Okabe & Ito's palette, in an order that keeps neighbours apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PLOTLY_MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")


Judged = Curve | GeneratorReport


@dataclass(frozen=True)
class Entry:
    """A curve in a comparison. Entries of one `label` are repetitions over seeds; those of one `group` share a colour."""

    label: str
    group: str
    curve: Judged


@dataclass(frozen=True)
class Point:
    """One kept count, or guidance scale, of one label: means over its seeds, and standard deviations (0 for a single seed)."""

    label: str
    group: str
    at: float  # the kept count or the scale
    loss: float  # Fréchet distance
    gain: float  # what `Plane.gain` names
    loss_std: float
    gain_std: float


@dataclass(frozen=True)
class Plane:
    """What a comparison sets against the Fréchet distance, and what its curves run over."""

    at: str  # key of what a curve runs over
    column: str
    over: str
    said: str  # to be formatted with a value
    gain: str  # key
    gain_title: str
    identity: tuple[str, ...]  # of the protocol: what must be equal for two numbers to mean the same


IDENTITY = ("extractor", "data_fingerprint", "images")


def plane(curve: Judged) -> Plane:
    """Of a tokenizer the probe over kept tokens, or PSNR without labels; of a generator the Inception score over guidance
    scales or, with an extractor that knows no classes, how often the asked class is recognised."""
    if isinstance(curve, Curve):
        with_probe = probed(curve)
        return Plane(
            at="keep",
            column="kept",
            over="kept tokens",
            said="{:g} kept tokens",
            gain="probe_top1_cls" if with_probe else "psnr",
            gain_title=(
                "linear probe of [CLS], top-1 % (higher is better)"
                if with_probe
                else "PSNR, dB (higher is better)"
            ),
            identity=(*IDENTITY, "split", "preprocessing"),
        )
    score = curve.protocol["keys"]["inception_score"]
    scored = all(score in row for row in curve.rows)
    return Plane(
        at="scale",
        column="scale",
        over="guidance scale",
        said="guidance scale {:g}",
        gain=score if scored else "class_top1",
        gain_title="Inception score (higher is better)"
        if scored
        else "class recognised, % (higher is better)",
        identity=(*IDENTITY, "reference") if scored else (*IDENTITY, "reference", "class_probe"),
    )


def require_one_identity(curves: Sequence[Judged]) -> None:
    """Raise `InputError` unless all curves have points, measured by the same protocol on the same pictures."""
    if not curves:
        raise InputError("there is no curve to compare")
    for curve in curves:
        for key in (curve.frechet_key, plane(curve).gain):
            if any(key not in row for row in curve.rows):
                reasons = "; ".join(lacking_sentences(curve.protocol)) or "it was not asked for"
                raise InputError(
                    f"the curve of '{curve.run}' has no '{key}' everywhere ({reasons}): evaluate it again, with --suite all"
                )
    first, ours = curves[0], plane(curves[0])
    for curve in curves[1:]:
        if plane(curve).at != ours.at:
            raise InputError(
                f"one of '{first.run}' and '{curve.run}' is a tokenizer, the other a generator: compare like with like"
            )
        for key in ours.identity:
            mine, theirs = first.protocol.get(key), curve.protocol.get(key)
            if mine != theirs:
                raise InputError(
                    f"'{first.run}' and '{curve.run}' were not measured alike ({key}: {_short(mine)} and {_short(theirs)}): "
                    "evaluate both on the same data with the same extractor"
                )
        if plane(curve).gain != ours.gain:
            raise InputError(f"only one of '{first.run}' and '{curve.run}' has a probe")


def _short(value: Any) -> str:
    text = value.get("name", str(value)) if isinstance(value, Mapping) else str(value)
    return text[:40]


def averaged(entries: Sequence[Entry]) -> list[Point]:
    """The points of every label, means over seeds, by label and rising kept count or scale."""
    found: list[Point] = []
    for label in dict.fromkeys(entry.label for entry in entries):
        same = [entry for entry in entries if entry.label == label]
        names, frechet = plane(same[0].curve), same[0].curve.frechet_key
        for at in sorted({row[names.at] for entry in same for row in entry.curve.rows}):
            rows = [row for entry in same for row in entry.curve.rows if row[names.at] == at]
            loss = np.array([row[frechet] for row in rows])
            gains = np.array([row[names.gain] for row in rows])
            found.append(
                Point(
                    label,
                    same[0].group,
                    at,
                    float(loss.mean()),
                    float(gains.mean()),
                    *(float(v.std(ddof=1)) if len(v) > 1 else 0.0 for v in (loss, gains)),
                )
            )
    return found


def loss_title(curve: Judged) -> str:
    """The Fréchet axis, by its true name."""
    title = f"{curve.frechet_key} (lower is better): Fréchet distance, {curve.protocol['extractor']['description']}"
    return "\n".join(textwrap.wrap(title, 62))


def judged_notes(curve: Judged) -> list[str]:
    """What a reader must know to judge a comparison with this curve."""
    if isinstance(curve, Curve):
        return notes(curve)
    p = curve.protocol
    said = [
        f"{p['images']:,} pictures a point, classes in turn, against {p['reference']['images']:,} real ones of "
        f"'{p['reference']['split']}', data '{PurePath(p['data']).name}' {p['data_fingerprint'][:12]}; EMA weights; "
        f"{p['guidance']['schedule']} guidance"
    ]
    if plane(curve).gain == "class_top1":
        probe = p["class_probe"]
        said.append(
            f"Class: {probe['kind']}; {probe['train_images']:,} training pictures; real pictures {probe['real_top1']:.1f}%, "
            f"chance {p['chance_top1']:.1f}%"
        )
    if (dim := p["extractor"].get("dim", 0)) >= p["images"]:
        said.append(few_pictures(dim))
    return said


def common_notes(entries: Sequence[Entry]) -> list[str]:
    """The notes of a comparison: the first curve's, with the weights of all."""
    first = entries[0].curve
    said = judged_notes(first)
    if isinstance(first, Curve):
        weights = list(dict.fromkeys(e.curve.weights() for e in entries if isinstance(e.curve, Curve)))
        every = " and ".join(weights) if len(weights) < 4 else f"weights of {len(weights)} different steps"
        said[0] = said[0].replace(first.weights(), every)
    return said


def overlay_figure(entries: Sequence[Entry], title: str, families: str = "") -> Figure:
    """Fréchet distance (left) and gain (right) over kept tokens or scales, one line per label, bars over seeds.

    Raises `InputError` for curves that were not measured alike.
    """
    require_one_identity([entry.curve for entry in entries])
    points, curve = averaged(entries), entries[0].curve
    figure, (left, right), handles = _framed(entries, title, families, panels=2)
    for axes, value, spread in ((left, "loss", "loss_std"), (right, "gain", "gain_std")):
        for label in dict.fromkeys(p.label for p in points):
            mine = [p for p in points if p.label == label]
            colour, marker = style(entries, mine[0].group)
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
        axes.set_xlabel(f"{plane(curve).over} (log scale)")
    left.set_ylabel(loss_title(curve))
    if logarithmic_values([p.loss for p in points]):
        left.set_yscale("log")
    right.set_ylabel(plane(curve).gain_title)
    if isinstance(curve, Curve):
        _baseline(right, curve)
    _legend(figure, handles)
    return figure


def pareto_figure(entries: Sequence[Entry], title: str, families: str = "") -> Figure:
    """Fréchet distance against gain, a point per label and kept count or scale, the Pareto front drawn and named.

    Raises `InputError` for curves that were not measured alike.
    """
    require_one_identity([entry.curve for entry in entries])
    points, curve = averaged(entries), entries[0].curve
    figure, (axes,), handles = _framed(entries, title, families, panels=1)
    for group in dict.fromkeys(p.group for p in points):
        mine = [p for p in points if p.group == group]
        colour, marker = style(entries, group)
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
    best = [points[i] for i in front([(p.loss, p.gain) for p in points])]
    (line,) = axes.step(
        [p.loss for p in best],
        [p.gain for p in best],
        where="post",
        color=GREY,
        linewidth=1.3,
        linestyle="--",
        zorder=0,
        label=f"Pareto front, {plane(curve).over} named",
    )
    for point in best:
        axes.annotate(
            f"{point.at:g}",
            (point.loss, point.gain),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            size=9,
        )
    if logarithmic_values([p.loss for p in points]):
        axes.set_xscale("log")
    axes.margins(0.08)
    axes.set_xlabel(loss_title(curve))
    axes.set_ylabel(plane(curve).gain_title)
    _legend(figure, [*handles, line])
    return figure


def drawn_figure(drawn: Mapping[int, int], run: str) -> Figure:
    """The histogram of the kept counts that a training drew."""
    figure = Figure(figsize=(6.4, 3.6), dpi=100, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    counts = sorted(drawn)
    axes.bar([str(keep) for keep in counts], [drawn[keep] for keep in counts], color=COLOURS[0])
    axes.set_xlabel("kept tokens")
    axes.set_ylabel("optimizer steps")
    axes.set_title(f"Kept counts drawn: {run}", size=11, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def comparison_html(entries: Sequence[Entry], title: str) -> str:
    """The Pareto picture to point at: one HTML page with plotly's JavaScript inside."""
    import plotly.graph_objects as go

    require_one_identity([entry.curve for entry in entries])
    points, curve = averaged(entries), entries[0].curve
    figure = go.Figure()
    groups = list(dict.fromkeys(p.group for p in points))
    for label in dict.fromkeys(p.label for p in points):
        mine = [p for p in points if p.label == label]
        at = groups.index(mine[0].group) % len(COLOURS)
        figure.add_trace(
            go.Scatter(
                x=[p.loss for p in mine],
                y=[p.gain for p in mine],
                mode="lines+markers",
                name=escape(label),
                legendgroup=escape(mine[0].group),
                legendgrouptitle={"text": escape(mine[0].group)},
                line={"color": COLOURS[at], "width": 1},
                marker={"symbol": PLOTLY_MARKERS[at], "size": 8},
                text=[f"{escape(p.label)}<br>{plane(curve).said.format(p.at)}" for p in mine],
                hovertemplate="%{text}<br>" + curve.frechet_key + " %{x:.4g}<br>%{y:.4g}<extra></extra>",
            )
        )
    best = [points[i] for i in front([(p.loss, p.gain) for p in points])]
    figure.add_trace(
        go.Scatter(
            x=[p.loss for p in best],
            y=[p.gain for p in best],
            mode="lines",
            line={"shape": "hv", "dash": "dash", "color": GREY},
            name="Pareto front",
            hoverinfo="skip",
        )
    )
    said = "<br>".join(escape(line) for note in common_notes(entries) for line in textwrap.wrap(note, 150))
    figure.update_layout(
        template="plotly_white",
        title={"text": f"<b>{escape(title)}</b>", "subtitle": {"text": said}},
        xaxis={"title": {"text": loss_title(curve).replace("\n", "<br>")}},
        yaxis={"title": {"text": plane(curve).gain_title}},
        height=720,
        margin={"t": 150},
    )
    if logarithmic_values([p.loss for p in points]):
        figure.update_xaxes(type="log")
    return figure.to_html(
        include_plotlyjs=True, full_html=True, config={"displaylogo": False, "responsive": True}
    )


def comparison_csv(entries: Sequence[Entry]) -> str:
    """All rows of all curves, with their label and group, full precision."""
    import csv
    import io

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


def style(entries: Sequence[Entry], group: str) -> tuple[str, str]:
    """(colour, marker) of a group."""
    at = list(dict.fromkeys(entry.group for entry in entries)).index(group)
    return COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]


def _framed(
    entries: Sequence[Entry], title: str, families: str, panels: int
) -> tuple[Figure, list[Axes], list[Any]]:
    said = [
        line for note in common_notes(entries) for line in textwrap.wrap(note, 118, break_on_hyphens=False)
    ]
    head = textwrap.wrap(title, 78)
    groups = list(dict.fromkeys(entry.group for entry in entries))
    rows = math.ceil((len(groups) + 1) / 3)
    above = 0.45 + 0.27 * len(head) + 0.2 * len(said)
    below = 0.85 + 0.26 * rows
    width, height = (11.4 if panels == 2 else 9.2), 4.4 + above + below
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    bottom, tall = below / height, 1 - (above + below) / height
    spans = [(0.085, 0.39), (0.585, 0.39)][:panels] if panels > 1 else [(0.1, 0.86)]
    places = [(left, bottom, wide, tall) for left, wide in spans]
    axes = [figure.add_axes(place) for place in places]
    for one in axes:
        one.grid(color="#e6e6e6", linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    plain: dict[str, Any] = {"va": "top", "parse_math": False}
    edge = places[0][0]
    figure.text(edge, 1 - 0.18 / height, "\n".join(head), size=14, weight="bold", **plain)
    figure.text(
        edge,
        1 - (0.25 + 0.27 * len(head)) / height,
        "\n".join(said),
        size=9.5,
        color=GREY,
        linespacing=1.3,
        **plain,
    )
    handles = []
    for group in groups:
        colour, marker = style(entries, group)
        named = f"{families} = {group}" if families else group
        (handle,) = axes[0].plot([], [], color=colour, marker=marker, label=named)
        handles.append(handle)
    return figure, axes, handles


def _legend(figure: Figure, handles: list[Any]) -> None:
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.004), ncols=3, frameon=False, fontsize=9.5
    )


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
    points, curve = averaged(entries), entries[0].curve
    if not isinstance(curve, Curve):
        raise InputError("the paper's Table 4 is of tokenizers: leave --paper out for generators")
    figure, (ours, paper), handles = _framed(entries, title, "", panels=2)
    for label in dict.fromkeys(p.label for p in points):
        mine = [p for p in points if p.label == label]
        colour, marker = style(entries, mine[0].group)
        ours.plot([p.loss for p in mine], [p.gain for p in mine], color=colour, marker=marker, linewidth=1.2)
        for p in mine:
            ours.annotate(
                f"{p.at:g}", (p.loss, p.gain), xytext=(4, 4), textcoords="offset points", size=8, color=colour
            )
    if logarithmic_values([p.loss for p in points]):
        ours.set_xscale("log")
    ours.set_xlabel(loss_title(curve))
    ours.set_ylabel(plane(curve).gain_title)
    for variant, rows in PAPER_TABLE_4.items():
        (line,) = paper.plot(*zip(*rows.values(), strict=True), color=GREY, marker="h", linewidth=1.2)
        line.set_label(f"MergeVQ {variant}, paper's Table 4 (ImageNet-1K; not comparable with other data)")
        handles.append(line)
        for keep, point in rows.items():
            paper.annotate(str(keep), point, xytext=(4, 4), textcoords="offset points", size=8, color=GREY)
    paper.set_xlabel("rFID on ImageNet-1K (Inception features)")
    paper.set_ylabel("linear probe on ImageNet-1K, top-1 %")
    _legend(figure, handles)
    return figure
