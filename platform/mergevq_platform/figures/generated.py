"""Generated images: rows of them, each beside its nearest training images, and metrics over guidance scales."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergevq_platform.evaluation.generator_report import NAMES, GeneratorReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

CELL = 64  # screen pixels that a small image is enlarged to, about: the factor is whole
GAP, MARGIN, LINE = 4, 12, 17  # screen pixels
DPI = 100
LEFT, RIGHT, GREY = "#0072b2", "#d55e00", "#8a8a8a"
REFERENCE_STYLES = {"reconstructed": "--", "by_position": ":", "untrained": (0, (1, 3))}


def image_rows(
    rows: Mapping[str, Sequence[np.ndarray]],
    *,
    heads: Sequence[str] = (),
    below: Mapping[str, Sequence[str]] | None = None,
    foot: str = "",
) -> Figure:
    """Images (H, W, 3) uint8 in labelled rows, enlarged by a whole factor; `heads` over columns, `below` under images."""
    shown = [image.shape[:2] for images in rows.values() for image in images]
    factor = max(1, round(CELL / max(max(shape) for shape in shown)))
    tall, broad = (factor * max(sides) for sides in zip(*shown, strict=True))
    columns = max(len(images) for images in rows.values())
    note = 14 if below else 0
    left = MARGIN + 7 * max(map(len, rows))
    width = left + columns * (broad + GAP) - GAP + MARGIN
    words = textwrap.wrap(foot, max(40, width // 6))
    top = MARGIN + (LINE if heads else 0)
    height = top + len(rows) * (tall + GAP + note) + LINE * len(words) + MARGIN
    canvas = np.full((height, width, 3), 255, np.uint8)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    plain: dict[str, Any] = {"parse_math": False}
    for column, head in enumerate(heads):
        x = left + column * (broad + GAP) + broad / 2
        figure.text(x / width, 1 - (top - 4) / height, head, ha="center", va="bottom", size=8, **plain)
    for row, (label, images) in enumerate(rows.items()):
        y = top + row * (tall + GAP + note)
        figure.text(
            (left - 8) / width, 1 - (y + tall / 2) / height, label, ha="right", va="center", size=8.5, **plain
        )
        for column, image in enumerate(images):
            x = left + column * (broad + GAP)
            large = image.repeat(factor, 0).repeat(factor, 1)
            canvas[y : y + large.shape[0], x : x + large.shape[1]] = large
        for column, text in enumerate((below or {}).get(label, ())):
            x = left + column * (broad + GAP) + broad / 2
            figure.text(
                x / width, 1 - (y + tall + 1) / height, text, ha="center", va="top", size=7, color=GREY
            )
    figure.text(
        MARGIN / width, (MARGIN - 4) / height, "\n".join(words), size=8, color="#555555", va="bottom", **plain
    )
    figure.figimage(canvas, origin="upper")
    return figure


def guidance_figure(report: GeneratorReport) -> Figure:
    """Fréchet distance (left) and recognised classes (right) over guidance scales, with baselines and ceilings as lines."""
    scales = [row["scale"] for row in report.rows]
    key = report.frechet_key

    def column(name: str) -> list[float]:
        return [row.get(name, math.nan) for row in report.rows]

    notes = textwrap.wrap(report.caption(), 118)
    above = 0.55 + 0.17 * len(notes)
    height = 4.2 + above + 1.2
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, height), dpi=DPI, facecolor="white")
    left = figure.add_axes((0.11, 1.2 / height, 0.78, 1 - (above + 1.2) / height))
    right = left.twinx()
    handles = left.plot(scales, column(key), "o-", color=LEFT, linewidth=2.2, label="Fréchet distance")
    handles += right.plot(
        scales,
        column("class_top1"),
        "s-",
        color=RIGHT,
        linewidth=2.2,
        label="class recognised",
    )
    low, high = (column(f"class_top1_{end}") for end in ("low", "high"))
    right.fill_between(scales, low, high, color=RIGHT, alpha=0.15, linewidth=0)
    handles += _reference_lines(report, left, right)
    measured = [*report.rows, *(row for name, row in report.references.items() if name in REFERENCE_STYLES)]
    values = [row[key] for row in measured if key in row]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        left.set_yscale("log")
    elif values:
        left.set_ylim(0, 1.08 * max(values) or 1)
    right.set_ylim(0, 102)
    left.set_xticks(scales, [f"{scale:g}" for scale in scales])
    left.set_xlabel("guidance scale (1: no guidance)")
    left.set_ylabel(f"{key}, lower is better", color=LEFT)
    right.set_ylabel("images whose class a probe recognises, %", color=RIGHT)
    left.grid(color="#e6e6e6", linewidth=0.8)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
    plain: dict[str, Any] = {"va": "top", "parse_math": False}
    figure.text(0.11, 1 - 0.15 / height, f"{report.run}: {report.kept()}", size=13, weight="bold", **plain)
    figure.text(0.11, 1 - 0.45 / height, "\n".join(notes), size=8.5, color="#555555", **plain)
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.05 / height),
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


def _reference_lines(report: GeneratorReport, left: Axes, right: Axes) -> list[Line2D]:
    """Draw baselines and ceilings as horizontal lines; returns them for the legend."""
    key, p, lines = report.frechet_key, report.protocol, []
    for name, style in REFERENCE_STYLES.items():
        if key in report.references.get(name, {}):
            level = report.references[name][key]
            lines.append(left.axhline(level, color=LEFT, linestyle=style, linewidth=1.4, label=NAMES[name]))
    if "class_probe" in p:
        real = p["class_probe"]["real_top1"]
        lines += [
            right.axhline(real, color=RIGHT, linestyle="--", linewidth=1.2, label="class of real images"),
            right.axhline(p["chance_top1"], color=RIGHT, linestyle=":", linewidth=1.4, label="chance"),
        ]
    return lines
