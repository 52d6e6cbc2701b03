"""Rate and distortion of allocators: quality over the mean of kept tokens, and what each saves at equal quality."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergevq.hub import short_name
from mergevq_platform.evaluation.equal_quality import mixture_at
from mergevq_platform.evaluation.rate_distortion_report import FIXED, RateDistortionReport
from mergevq_platform.figures.frame import COLOURS, MARKERS
from mergevq_platform.figures.series import FAINT, GREY

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, PANEL = 11.4, 3.5  # inches: of the figure, and the height of a panel
LEFT, WIDE, NEXT = 0.085, 0.39, 0.575  # of the width: the first panel's edge, a panel, the second's edge
BETWEEN = 0.75  # inches between two rows of panels
ALONE = "one count for all"
BLIND = "a mixture of two counts, blind to the images"


def rate_distortion_figure(report: RateDistortionReport) -> Figure:
    """PSNR, Fréchet distance, probe (or LPIPS) over the mean of kept tokens, and the tokens saved with their intervals."""
    panels = [panel for panel in _panels(report) if panel is not None]
    said = [line for note in _notes(report) for line in textwrap.wrap(note, 128, break_on_hyphens=False)]
    title = textwrap.wrap(f"Rate and distortion of allocators: {report.run}", 78)
    rows = -(-len(panels) // 2)
    above, below = 0.5 + 0.27 * len(title) + 0.2 * len(said), 1.3
    height = above + below + rows * PANEL + (rows - 1) * BETWEEN
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    handles: list[Artist] = []
    for number, draw in enumerate(panels):
        top = above + (number // 2) * (PANEL + BETWEEN)
        place = ((LEFT, NEXT)[number % 2], 1 - (top + PANEL) / height, WIDE, PANEL / height)
        axes = figure.add_axes(place)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        handles = draw(axes) or handles
    plain: dict[str, Any] = {"va": "top", "parse_math": False}
    figure.text(LEFT, 1 - 0.18 / height, "\n".join(title), size=14, weight="bold", **plain)
    edge = 1 - (0.25 + 0.27 * len(title)) / height
    figure.text(LEFT, edge, "\n".join(said), size=9.5, color=GREY, linespacing=1.3, **plain)
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.004), ncols=3, frameon=False, fontsize=9.5
    )
    return figure


def counts_figure(report: RateDistortionReport) -> Figure:
    """How many images keep each count: a row an allocator, a column a wanted mean."""
    from matplotlib.figure import Figure

    names = [name for name in report.allocators if name != FIXED]
    budgets = sorted({row["budget"] for name in names for row in report.allocators[name]})
    height = 0.95 + 1.75 * max(1, len(names))
    figure = Figure(
        figsize=(max(6.4, 3.6 * len(budgets)), height), dpi=100, facecolor="white", layout="constrained"
    )
    grid = figure.subplots(max(1, len(names)), max(1, len(budgets)), squeeze=False, sharey="row")
    for name, line in zip(names, grid, strict=False):
        for budget, axes in zip(budgets, line, strict=False):
            row = report.at(name, budget)
            axes.spines[["top", "right"]].set_visible(False)
            if row is None:
                continue
            found = report.histogram(name, budget)
            axes.bar([str(count) for count in found], list(found.values()), color=colour(report, name))
            axes.set_title(f"{name}: mean {row['kept']:.1f}", size=10, loc="left", parse_math=False)
            axes.tick_params(labelsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("images", size=10)
    for axes in grid[-1]:
        axes.set_xlabel("kept tokens", size=10)
    figure.suptitle(
        f"Kept counts of {report.protocol['images']:,} images: {report.run}",
        size=12,
        weight="bold",
        x=0.01,
        ha="left",
    )
    return figure


def colour(report: RateDistortionReport, allocator: str) -> str:
    """The colour of an allocator in all figures of a report; one count for all is grey."""
    if allocator == FIXED:
        return GREY
    names = [name for name in report.allocators if name != FIXED]
    return COLOURS[names.index(allocator) % len(COLOURS)]


def _panels(report: RateDistortionReport) -> list[Callable[[Axes], list[Artist]] | None]:
    lpips = next((key for _, row in report.lines() for key in row if key.startswith("lpips_")), None)
    probed = any("probe_top1_cls" in row for _, row in report.lines())
    gain = (
        ("probe_top1_cls", "top-1 of a linear probe, %\n(95% interval), higher is better") if probed else None
    )
    if lpips is not None and not probed:
        gain = (lpips, "LPIPS\nlower is better")
    distance = f"{report.frechet_key}\nlower is better"

    def psnr(axes: Axes) -> list[Artist]:
        return _quality(axes, report, "psnr", "PSNR, dB\nhigher is better", whole_menu=True)

    def frechet(axes: Axes) -> list[Artist]:
        _quality(axes, report, report.frechet_key, distance)
        return []

    def other(axes: Axes) -> list[Artist]:
        assert gain is not None
        _quality(axes, report, *gain)
        return []

    def saved(axes: Axes) -> list[Artist]:
        _saved(axes, report)
        return []

    measured = any(report.frechet_key in row for _, row in report.lines())
    return [psnr, saved, frechet if measured else None, other if gain else None]


def _quality(
    axes: Axes, report: RateDistortionReport, key: str, title: str, *, whole_menu: bool = False
) -> list[Artist]:
    """A line an allocator; returns the handles of a legend."""
    handles: list[Artist] = []
    if whole_menu:
        menu, means = (np.array([row[name] for row in report.rows]) for name in ("keep", key))
        handles += axes.plot(menu, means, color=GREY, marker=".", linewidth=1.6, label=f"{FIXED}: {ALONE}")
        between = np.linspace(menu[0], menu[-1], 200)
        mixed = mixture_at(between, menu, np.tile(means, (len(between), 1)))
        handles += axes.plot(between, mixed, color=FAINT, linestyle=":", linewidth=1.4, label=BLIND)
    for number, (name, rows) in enumerate(report.allocators.items()):
        shown = [row for row in rows if key in row]
        if not shown or (whole_menu and name == FIXED):
            continue
        kept, values = ([row[what] for row in shown] for what in ("kept", key))
        if all(f"{key}_low" in row for row in shown):
            low, high = ([row[f"{key}_{end}"] for row in shown] for end in ("low", "high"))
            axes.vlines(kept, low, high, color=colour(report, name), linewidth=1, alpha=0.6)
        handles += axes.plot(
            kept,
            values,
            color=colour(report, name),
            marker=MARKERS[number % len(MARKERS)],
            markersize=6,
            linewidth=1.9,
            label=name,
        )
    axes.set_xlabel("mean of kept tokens", size=10.5)
    axes.set_ylabel(title, size=10.5)
    ticks = report.protocol["menu"] if whole_menu else sorted({row["budget"] for _, row in report.lines()})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return handles


def _saved(axes: Axes, report: RateDistortionReport) -> None:
    """Tokens saved at equal PSNR, a point a row with its interval, side by side at each wanted mean."""
    names = [name for name in report.allocators if name != FIXED]
    budgets = sorted({row["budget"] for name in names for row in report.allocators[name]})
    step = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        shown = [row for row in report.allocators[name] if "saved_tokens" in row]
        places = [budgets.index(row["budget"]) - 0.4 + (number + 0.5) * step for row in shown]
        values = [row["saved_tokens"] for row in shown]
        spans = [
            [value - row["saved_tokens_low"] for value, row in zip(values, shown, strict=True)],
            [row["saved_tokens_high"] - value for value, row in zip(values, shown, strict=True)],
        ]
        axes.bar(places, values, width=0.85 * step, color=colour(report, name), alpha=0.75)
        axes.errorbar(
            places, values, yerr=np.maximum(spans, 0), fmt="none", ecolor="#222222", capsize=3, linewidth=1.2
        )
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("wanted mean of kept tokens", size=10.5)
    axes.set_ylabel("tokens saved at equal PSNR\n(95% interval), higher is better", size=10.5)


def _notes(report: RateDistortionReport) -> Sequence[str]:
    p = report.protocol
    calibration = p["calibration"]
    said = [
        f"{p['images']:,} images of '{p['split']}', data '{short_name(p['data'])}' {p['data_fingerprint'][:12]}; every image keeps one of "
        f"{', '.join(map(str, p['menu']))} tokens; true source.",
        f"Calibrated on {calibration['images']:,} images of '{calibration['split']}' to the wanted mean; drawn at the mean reached here. "
        f"Fréchet distance: {p['extractor']['description']}.",
    ]
    return [*said, p["caveat"]] if p.get("caveat") else said
