"""Trends of a metric over kept tokens, as sentences: whether it rises or falls as it should, and how clearly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np


def trend_sentence(
    claim: str, keeps: Sequence[float], values: Sequence[float], expected: int, least: float
) -> str:
    # A trend needs a direction and a size: noise in the third digit has a rank correlation too. Nor may the noise of a part
    # where the curve is flat outvote the part where it is steep, so only pairs that clearly differ have a say.
    finite = numbered(values)
    rho = rank_correlation(keeps, finite)
    spread = (max(finite) - min(finite)) / max(max(map(abs, finite)), 1e-12)
    word = "yes" if concordance(keeps, finite) * expected > 0.5 and spread > least else "NO"
    return f"{word}: {claim} (rank correlation {rho:+.2f}, {min(values):.3g} to {max(values):.3g})"


def numbered(values: Sequence[float]) -> list[float]:
    """Values, of which none is NaN, where an infinity stands as far beyond the others as these span: older curves hold such PSNR."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    span = high - low or 1.0
    return [value if math.isfinite(value) else high + span if value > 0 else low - span for value in values]


def gain_sentence(claim: str, points: float) -> str:
    return f"{'yes' if points > 0 else 'NO'}: {claim} (weakest count: {points:+.1f} points)"


def concordance(x: Sequence[float], y: Sequence[float]) -> float:
    """Goodman and Kruskal's gamma of the pairs whose y differ by over a tenth of y's range: 1 where all rise, -1 where all
    fall; 0 without such pairs."""
    clear = (max(y) - min(y)) / 10
    signs = [
        (x2 > x1) - (x2 < x1) if y2 > y1 else (x2 < x1) - (x2 > x1)
        for (x1, y1), (x2, y2) in combinations(zip(x, y, strict=True), 2)
        if abs(y2 - y1) > clear
    ]
    return sum(signs) / len(signs) if signs else 0.0


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rho; 0 where one side is constant or holds a NaN."""
    if min(len(set(x)), len(set(y))) < 2 or any(map(math.isnan, (*x, *y))):
        return 0.0
    return float(np.corrcoef(np.column_stack([_ranks(x), _ranks(y)]), rowvar=False)[1, 0])


def _ranks(values: Sequence[float]) -> np.ndarray:
    # (n,) float64 from 1 on; equal values share the mean of their ranks. scipy.stats would take half a second to import.
    _, inverse, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
