"""Two goals at once: a loss that should fall and a gain that should rise."""

from __future__ import annotations

import math
from collections.abc import Sequence

LossAndGain = tuple[float, float]  # (loss, gain)


def front(points: Sequence[LossAndGain]) -> list[int]:
    """Indices of the points that no other point beats, by rising loss; of equal points the first."""
    found: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        loss, gain = points[index]
        if math.isfinite(loss) and gain > best:
            found.append(index)
            best = gain
    return found


def hypervolume(points: Sequence[LossAndGain], reference: LossAndGain) -> float:
    """The area that the points dominate, up to the reference point (its loss and its gain); 0 if none is better than it."""
    better = [point for point in points if point[0] < reference[0] and point[1] > reference[1]]
    stairs = [better[index] for index in front(better)]
    if not stairs:
        return 0.0
    edges = [loss for loss, _ in stairs[1:]] + [reference[0]]
    return math.fsum(
        (edge - loss) * (gain - reference[1]) for (loss, gain), edge in zip(stairs, edges, strict=True)
    )
