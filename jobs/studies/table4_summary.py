"""What the cells of `table4.py` say: means over seeds, slopes with intervals, a verdict, a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PROBE, FRECHET = "probe_top1_cls", "rfd_random_v1"
COLUMNS = {  # of the table: key of a cell -> its head and decimals
    FRECHET: ("`rfd_random_v1`", 2),
    "psnr": ("PSNR, dB", 2),
    PROBE: ("probe, at K", 1),
    "probe_top1_cls_all_tokens": ("probe, all tokens", 1),
    "knn_top1_cls": ("k-NN, at K", 1),
    "probe_top1_untrained": ("probe, untrained", 1),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # of the settings
PAPER = {256: 48.6, 196: 49.5, 144: 51.0, 100: 51.2, 64: 51.8, 36: 52.1}  # G+R, probe top-1


class Trend(NamedTuple):
    """Change of a value each time the kept count is halved, within a seed, and its 95 % interval."""

    slope: float
    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """The trained tokenizers of one setting: `cells[count][seed]` is a cell's result."""

    name: str
    title: str
    cells: dict[int, dict[int, dict[str, Any]]]

    @property
    def counts(self) -> list[int]:
        """The kept counts, ascending."""
        return sorted(self.cells)

    def values(self, count: int, key: str) -> list[float]:
        """A value of every seed at a count."""
        return [row[key] for _, row in sorted(self.cells[count].items())]

    def points(self, key: str) -> list[tuple[int, int, float]]:
        """(count, seed, value) of every cell."""
        return [(count, seed, row[key]) for count, rows in self.cells.items() for seed, row in rows.items()]


def read_settings(folder: Path) -> list[Setting]:
    """The results of trained tokenizers in a folder, by setting."""
    found: dict[str, Setting] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text()).get("result", {})
        if "count" not in result:
            continue  # a teacher
        setting = found.setdefault(
            result["setting"], Setting(result["setting"], result["protocol"]["alignment"], {})
        )
        setting.cells.setdefault(result["count"], {})[result["seed"]] = result
    return list(found.values())


def trend(points: Iterable[tuple[int, int, float]]) -> Trend | None:
    """Least squares of values on -log2 of the count, with a level of its own for every seed; None without a residual.

    Tokenizers of one seed share their initial weights and their batches, so that seeds are blocks. The interval is Student's.
    """
    rows = list(points)
    seeds = sorted({seed for _, seed, _ in rows})
    halvings = np.array([-math.log2(count) for count, _, _ in rows])
    y = np.array([value for _, _, value in rows])
    blocks = np.array([[float(seed == own) for own in seeds] for _, seed, _ in rows])
    degrees = len(rows) - len(seeds) - 1
    if degrees < 1 or len(set(halvings.tolist())) < 2:
        return None
    # What is left of both once every seed's mean is taken away: its regression is the slope (Frisch, Waugh and Lovell).
    away = blocks @ np.linalg.pinv(blocks)
    x, y = halvings - away @ halvings, y - away @ y
    slope = float(x @ y / (x @ x))
    residual = y - slope * x
    error = math.sqrt(float(residual @ residual) / degrees / float(x @ x))
    from scipy.stats import t  # half a second, which training does without

    wide = float(t.ppf(0.975, degrees)) * error
    return Trend(slope, slope - wide, slope + wide)


def verdict(claim: str, found: Trend | None, unit: str) -> str:
    """A sentence: yes, NO or undecided, by whether the interval of the slope excludes zero. The claim is that it rises."""
    if found is None:
        return f"undecided: {claim} (too few tokenizers for an interval)"
    word = "yes" if found.low > 0 else "NO" if found.high < 0 else "undecided"
    return f"{word}: {claim} ({found.slope:+.2f} {unit} each time K is halved, 95 % interval {found.low:+.2f} to {found.high:+.2f})"


def verdicts(setting: Setting) -> list[str]:
    """The two halves of Table 4's trend, and whether the probe learned anything at all."""
    logs = [(count, seed, math.log(value)) for count, seed, value in setting.points(FRECHET)]
    gains = [
        row[PROBE] - row["probe_top1_untrained"] for rows in setting.cells.values() for row in rows.values()
    ]
    every = setting.points(PROBE)
    return [
        verdict("the probe rises as K falls", trend(every), "points"),
        verdict("the Fréchet distance rises as K falls", trend(logs), "in its natural logarithm"),
        f"probe less the untrained encoder's, mean over all {len(gains)} tokenizers: {np.mean(gains):+.1f} points"
        f" (lowest {min(gains):+.1f})",
    ]


def markdown(settings: Sequence[Setting]) -> str:
    """Tables, verdicts and protocols."""
    parts: list[str] = []
    for setting in settings:
        heads = [head for head, _ in COLUMNS.values()]
        parts += [f"### {setting.title}", ""]
        parts += ["| K | seeds | " + " | ".join(heads) + " |", "|---:|---:" + "|---:" * len(heads) + "|"]
        for count in setting.counts:
            cells = [_mean(setting.values(count, key), decimals) for key, (_, decimals) in COLUMNS.items()]
            parts.append(f"| {count} | {len(setting.cells[count])} | " + " | ".join(cells) + " |")
        parts += ["", *(f"- {sentence}" for sentence in verdicts(setting)), ""]
    return "\n".join(parts)


def _mean(values: Sequence[float], decimals: int) -> str:
    """Mean ± standard deviation over seeds (n - 1); no deviation of one."""
    text = f"{np.mean(values):.{decimals}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


def draw(settings: Sequence[Setting], path: Path) -> None:
    """The probe and the Fréchet distance over the kept count of training, with standard deviations; single seeds as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.6), dpi=100, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, title in zip(
        panels,
        (PROBE, FRECHET),
        ("linear probe of [CLS], top-1 %", "Fréchet distance, random features (not FID)"),
        strict=True,
    ):
        for colour, marker, setting in zip(COLOURS, "os^", settings, strict=False):
            _line(axes, setting, key, colour, marker, setting.title)
            if key == PROBE:
                means = [np.mean(setting.values(count, "probe_top1_untrained")) for count in setting.counts]
                axes.plot(setting.counts, means, color=colour, linestyle=":", linewidth=1)
        counts = sorted({count for setting in settings for count in setting.counts})
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("tokens kept in training and evaluation, K")
        axes.set_title(title, fontsize=11, loc="left")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].set_yscale("log")
    panels[0].plot([], [], color="#555555", linestyle=":", linewidth=1, label="untrained encoder")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)
    figure.suptitle("One tokenizer for every kept count (the question of the paper's Table 4)", fontsize=12)
    figure.savefig(path)


def _line(axes: Any, setting: Setting, key: str, colour: str, marker: str, label: str) -> None:
    means = [float(np.mean(setting.values(count, key))) for count in setting.counts]
    deviations = [
        float(np.std(values, ddof=1)) if len(values := setting.values(count, key)) > 1 else 0.0
        for count in setting.counts
    ]
    axes.errorbar(
        setting.counts, means, deviations, color=colour, marker=marker, capsize=3, linewidth=1.8, label=label
    )
    for count, _, value in setting.points(key):
        axes.plot(count, value, marker=marker, color=colour, alpha=0.35, markersize=4, linestyle="none")
