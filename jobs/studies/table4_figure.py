"""The figure of `table4.py`: what the probe and the Fréchet distance do as K falls, beside the paper's gain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergevq.errors import InputError
from table4_summary import FRECHET, PROBE, Setting, gains

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9")  # of the settings
MARKERS = "os^Dv*"
ASIDE = 1.03  # factor of the counts from a setting to the next, so that deviations do not hide each other
PAPER = {256: 48.6, 196: 49.5, 144: 51.0, 100: 51.2, 64: 51.8, 36: 52.1}  # G+R, probe top-1


def draw(settings: Sequence[Setting], path: Path) -> None:
    """Probe, its gain over the most tokens, and Fréchet distance over the kept count: means, deviations and single seeds.

    Raises `InputError` for more settings than can be told apart.
    """
    if len(settings) > len(COLOURS):
        raise InputError(f"{len(settings)} settings: a figure tells {len(COLOURS)} apart: give fewer folders")
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(12.4, 4.7), dpi=100, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 3)
    counts = sorted({count for setting in settings for count in setting.counts})
    grid = counts[-1]
    for place, setting in enumerate(settings):
        colour, marker, aside = COLOURS[place], MARKERS[place], ASIDE ** (place - (len(settings) - 1) / 2)
        measured = setting.points(PROBE), gains(setting, grid), setting.points(FRECHET)
        for axes, points in zip(panels, measured, strict=True):
            moved = [(count * aside, seed, value) for count, seed, value in points]
            _line(axes, moved, colour, marker, setting.title)
    _untrained(panels[0], settings)
    places = [count * grid / max(PAPER) for count in PAPER]
    over = [value - PAPER[max(PAPER)] for value in PAPER.values()]
    panels[1].plot(places, over, color="#555555", linestyle="--", linewidth=1.2)
    panels[1].axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    panels[2].set_yscale("log")
    panels[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[2].yaxis.set_major_formatter("{x:g}")
    panels[2].yaxis.set_minor_formatter(NullFormatter())
    titles = (
        "Linear probe of [CLS], top-1 %",
        f"Points over the same seed's tokenizer of K = {grid}",
        "Fréchet distance, random features (not FID)",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.xaxis.minorticks_off()
        axes.set_xlabel(f"tokens kept in training and evaluation, K of {grid}")
        axes.set_title(title, fontsize=11, loc="left")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].plot(
        [],
        [],
        color="#555555",
        linestyle="--",
        linewidth=1.2,
        label="the paper's G+R, at its share of 256 tokens",
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)
    figure.savefig(path)


def _line(
    axes: Any, points: Sequence[tuple[float, int, float]], colour: str, marker: str, label: str
) -> None:
    counts = sorted({count for count, _, _ in points})
    groups = [[value for at, _, value in points if at == count] for count in counts]
    deviations = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in groups]
    means = [float(np.mean(values)) for values in groups]
    # No lower than the lowest seed: a logarithmic axis has no place for a mean less a larger deviation.
    below = [
        min(deviation, mean - min(values))
        for deviation, mean, values in zip(deviations, means, groups, strict=True)
    ]
    axes.errorbar(
        counts,
        means,
        (below, deviations),
        color=colour,
        marker=marker,
        markersize=5,
        capsize=3,
        linewidth=1.6,
        label=label,
    )
    for count, values in zip(counts, groups, strict=True):
        axes.plot(
            [count] * len(values),
            values,
            marker=marker,
            color=colour,
            alpha=0.35,
            markersize=3.5,
            linestyle="none",
        )


def _untrained(axes: Any, settings: Sequence[Setting]) -> None:
    """The untrained encoder, which is the same in every setting."""
    points = sorted({point for setting in settings for point in setting.points("probe_top1_untrained")})
    counts = sorted({count for count, _, _ in points})
    means = [np.mean([value for at, _, value in points if at == count]) for count in counts]
    axes.plot(counts, means, color="#555555", linestyle=":", linewidth=1.2, label="untrained encoder")
