"""What the cells of `generability.py` say: a table, rank correlations with intervals, a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GENERATED = "gfd_random_v1"
# Key of a row -> its head, its axis, its decimals.
METRICS = {
    "rfd_random_v1": ("`rfd_random_v1`", "reconstructions", 2),
    "rfd_random_v1_recovered": ("… recovered", "reconstructions, source recovered", 2),
    "prfd_random_v1": ("`prfd_random_v1`", "perturbed codes (pFID)", 2),
    "ar_probe_v1_bits": ("probe, bits", "AR probe: bits per image", 0),
    "ar_probe_v1_gfd_random_v1": ("probe, `gfd_random_v1`", "AR probe: its samples", 2),
}
RESAMPLES = 10_000
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # of the tokenizers
MARKERS = ("o", "s", "^", "D")  # of the kept counts

Row = dict[str, Any]


class RankCorrelation(NamedTuple):
    """Spearman's correlation of a metric with the generators' distance; interval and p-values by resampling."""

    pooled: float  # over all rows
    low: float  # 95 % of bootstrap resamples of the rows
    high: float
    p_pooled: float  # of permuted distances that correlate as strongly
    within: float  # mean over kept counts of the correlation among the tokenizers
    p_within: float  # distances permuted within each count


def read_rows(folder: Path) -> list[Row]:
    """A row for every tokenizer and kept count whose generator and metrics are all there; `gfd_random_v1` is a mean over seeds."""
    found: dict[tuple[str, int], Row] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())["result"]
        if "keep" not in result:
            continue  # a tokenizer
        row = found.setdefault((result["tokenizer"], result["keep"]), {"seeds": []})
        if "seed" in result:
            row["seeds"].append(result[GENERATED])
        else:
            row |= result
    whole = [row for row in found.values() if row["seeds"] and METRICS.keys() <= row.keys()]
    for row in whole:
        row[GENERATED] = float(np.mean(row["seeds"]))
    return sorted(whole, key=lambda row: (row["keep"], row["tokenizer"]))


def correlation(rows: Sequence[Row], key: str) -> RankCorrelation:
    """How a metric ranks the rows as the generators do. Resampling is seeded: the same rows give the same numbers."""
    x, y = (np.array([row[name] for row in rows], dtype=float) for name in (key, GENERATED))
    groups = [
        np.flatnonzero([row["keep"] == keep for row in rows])
        for keep in sorted({row["keep"] for row in rows})
    ]
    random = np.random.default_rng(0)
    drawn = random.integers(len(rows), size=(RESAMPLES, len(rows)))
    low, high = np.nanpercentile(spearman(x[drawn], y[drawn]), [2.5, 97.5])
    pooled, chance = float(spearman(x, y)), spearman(x, _shuffled(y, random))
    within = float(np.mean([spearman(x[group], y[group]) for group in groups]))
    chance_within = np.mean([spearman(x[group], _shuffled(y[group], random)) for group in groups], axis=0)
    return RankCorrelation(
        pooled, float(low), float(high), _share(chance, pooled), within, _share(chance_within, within)
    )


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation of values (..., n), ties at their mean rank; NaN where one side is constant."""
    a, b = np.broadcast_arrays(_centred_ranks(x), _centred_ranks(y))
    scatter = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    found: np.ndarray = np.where(scatter > 0, (a * b).sum(-1) / np.where(scatter > 0, scatter, 1), np.nan)
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The table of the rows, and that of the correlations."""
    heads = [
        "tokenizer",
        "kept",
        *(head for head, _, _ in METRICS.values()),
        "PSNR, dB",
        "generator, `gfd_random_v1`",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for row in rows:
        seeds = " ".join(f"{value:.2f}" for value in row["seeds"])
        shown = f"{row[GENERATED]:.2f} ({seeds})" if len(row["seeds"]) > 1 else seeds
        numbers = [f"{row[key]:.{decimals}f}" for key, (_, _, decimals) in METRICS.items()]
        lines.append(
            " | ".join([f"| {row['tokenizer']}", str(row["keep"]), *numbers, f"{row['psnr']:.2f}", shown])
            + " |"
        )
    lines += ["", f"Spearman's correlation with the generators' distance, {len(rows)} rows:", ""]
    lines += [
        "| metric | all rows [95 %] | p | among tokenizers at one count | p |",
        "|---|---:|---:|---:|---:|",
    ]
    for key, (_, title, _) in METRICS.items():
        found = correlation(rows, key)
        lines.append(
            f"| {title} | {found.pooled:+.2f} [{found.low:+.2f}, {found.high:+.2f}] | {_p(found.p_pooled)} "
            f"| {found.within:+.2f} | {_p(found.p_within)} |"
        )
    repeated = [row["seeds"][:2] for row in rows if len(row["seeds"]) > 1]
    if len(repeated) > 2:
        first, second = np.array(repeated).T
        lines += [
            "",
            f"Two seeds of the generator agree by {spearman(first, second):+.2f} ({len(repeated)} rows).",
        ]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each metric: its value and the generators' distance, a point a row."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = sorted({row["tokenizer"] for row in rows})
    keeps = sorted({row["keep"] for row in rows})
    figure, panels = pyplot.subplots(1, len(METRICS), figsize=(13, 3.4), sharey=True, layout="constrained")
    for panel, (key, (_, title, _)) in zip(panels, METRICS.items(), strict=True):
        for row in rows:
            colour, marker = COLOURS[names.index(row["tokenizer"])], MARKERS[keeps.index(row["keep"])]
            panel.scatter(row[key], row[GENERATED], c=colour, marker=marker, s=36, linewidths=0)
        found = correlation(rows, key)
        panel.set_title(
            f"{title}\nρ = {found.pooled:+.2f}, at one count {found.within:+.2f}".replace("-", "−"),
            fontsize=9,
        )
        panel.set_xlabel("bits" if key.endswith("bits") else "Fréchet distance", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("generator: gfd_random_v1", fontsize=9)
    handles = [
        pyplot.Line2D([], [], color=c, marker="o", ls="", label=n)
        for c, n in zip(COLOURS, names, strict=False)
    ]
    handles += [
        pyplot.Line2D([], [], color="grey", marker=m, ls="", label=f"{k} kept")
        for m, k in zip(MARKERS, keeps, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _centred_ranks(x: np.ndarray) -> np.ndarray:
    less, equal = (x[..., :, None] > x[..., None, :]).sum(-1), (x[..., :, None] == x[..., None, :]).sum(-1)
    ranks = less + equal / 2
    centred: np.ndarray = ranks - ranks.mean(-1, keepdims=True)
    return centred


def _shuffled(y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.permuted(np.tile(y, (RESAMPLES, 1)), axis=1)


def _share(chance: np.ndarray, found: float) -> float:
    # Of permutations as strong as what was found, itself among them.
    return (1 + int((np.abs(chance) >= abs(found) - 1e-12).sum())) / (1 + len(chance))


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
