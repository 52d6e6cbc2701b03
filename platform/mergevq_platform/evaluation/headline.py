"""The headline of an evaluation, what a paper prints, apart from its details."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from mergevq_platform.tracking.records import is_frechet


def divided(
    row: Mapping[str, float], is_headline: Callable[[str], bool], *, axis: str | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """(headline, details) of a row of metrics, without what it runs over."""
    values = {key: value for key, value in row.items() if key != axis}
    return (
        {key: value for key, value in values.items() if is_headline(key)},
        {key: value for key, value in values.items() if not is_headline(key)},
    )


def best_rows(rows: Sequence[dict[str, float]], keys: Iterable[str]) -> dict[str, dict[str, float]]:
    """The best row of each key that has finite values: the smallest of a Fréchet distance, the largest of others.

    Of equal ones the first.
    """
    found = {}
    for key in keys:
        measured = [row for row in rows if math.isfinite(row.get(key, math.nan))]
        if measured:
            best = min if is_frechet(key) else max
            found[key] = best(measured, key=lambda row: row[key])
    return found
