"""Trends of a metric over kept tokens, as sentences: whether it rises or falls as it should, and how clearly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


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
    """Spearman's rho; 0 where one side is constant."""
    from scipy.stats import spearmanr  # scipy.stats takes half a second to import

    rho = spearmanr(x, y).statistic if len(set(x)) > 1 and len(set(y)) > 1 else 0.0
    return 0.0 if math.isnan(rho) else float(rho)
