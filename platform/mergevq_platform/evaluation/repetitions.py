"""Repetitions of a measurement with other seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every number over repetitions; of two and more also the deviation (n - 1), as `<key>_std`."""
    found = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        found[key] = float(np.mean(values))
        if len(values) > 1 and not key.endswith(("_low", "_high", "majority_top1")):
            found[f"{key}_std"] = float(np.std(values, ddof=1))
    return found
