"""Hypervolumes of points whose objectives are losses, and what one point adds to those of others.

Exact where the coordinates are whole numbers, in whatever order they are added up.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np

from mergevq_platform.figures import pareto

Point = tuple[float, ...]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume that points dominate up to a reference point, of any number of objectives (slices of the last one).

    Exact where the coordinates are whole numbers.
    """
    inside = [point for point in points if all(a < b for a, b in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(inside)[0]
    if len(reference) == 2:
        return pareto.hypervolume([(p[0], -p[1]) for p in inside], (reference[0], -reference[1]))
    inside.sort(key=lambda point: point[-1])
    edges = [point[-1] for point in inside[1:]] + [reference[-1]]
    total = 0.0
    for count, (point, edge) in enumerate(zip(inside, edges, strict=True), start=1):
        if edge > point[-1]:
            total += (edge - point[-1]) * hypervolume([p[:-1] for p in inside[:count]], reference[:-1])
    return total


def box(point: Point, reference: Point) -> float:
    """The hypervolume of one point."""
    return math.prod(max(0.0, high - low) for low, high in zip(point, reference, strict=True))


class Stairs:
    """Points of two objectives that grow in number: those that none of them dominates, by the first objective."""

    def __init__(self, reference: Point) -> None:
        self._end, self._top = reference
        self._firsts: list[float] = []  # rising
        self._seconds: list[float] = []  # falling

    def added(self, point: Point) -> float:
        """The area up to the reference that `point` dominates and none of the points does."""
        left, bottom = point
        if left >= self._end:
            return 0.0
        at = bisect.bisect_right(self._firsts, left)
        top = self._seconds[at - 1] if at else self._top
        area = 0.0
        while top > bottom:
            inside = at < len(self._firsts)
            right = self._firsts[at] if inside else self._end
            area += (right - left) * (top - bottom)
            left, top = right, self._seconds[at] if inside else bottom
            at += 1
        return area

    def insert(self, point: Point) -> None:
        """Take one more point up."""
        if not self.added(point):
            return
        at = end = bisect.bisect_left(self._firsts, point[0])
        while end < len(self._firsts) and self._seconds[end] >= point[1]:
            end += 1
        self._firsts[at:end], self._seconds[at:end] = [point[0]], [point[1]]


class Boxes:
    """Points of any number of objectives that grow in number."""

    def __init__(self, reference: Point) -> None:
        self._reference = reference
        self._points = np.empty((0, len(reference)))

    def added(self, point: Point) -> float:
        """The hypervolume up to the reference that `point` dominates and none of the points does."""
        covered = np.unique(np.maximum(self._points, point), axis=0)
        # Within the box of one point most others are dominated: few are left, and slices of few are cheap.
        no_worse = np.ones((len(covered), len(covered)), dtype=bool)
        for column in covered.T:
            no_worse &= column[:, None] <= column[None]
        few = covered[np.count_nonzero(no_worse, axis=0) == 1]
        return box(point, self._reference) - hypervolume(
            [tuple(row) for row in few.tolist()], self._reference
        )

    def insert(self, point: Point) -> None:
        """Take one more point up."""
        self._points = np.vstack([self._points, point])
