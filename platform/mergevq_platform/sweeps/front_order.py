"""The order of points with several objectives: by non-dominated front, then by what each adds to the hypervolume.

Objectives are losses: less is better. Every one is first replaced by its rank among the points, so that neither its unit nor any
other increasing change of its scale (a distance or its logarithm, percent or a fraction) matters, and a value far off moves
nothing but itself. Ranks are whole numbers: hypervolumes and ties are exact.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from mergevq_platform.figures import pareto

Point = tuple[float, ...]


def places(losses: np.ndarray) -> np.ndarray:
    """The place (n,) int64 of each point of finite losses (n, objectives): how many points are better; equal points share one.

    Fronts by non-dominated sorting (Deb et al. 2002, NSGA-II). Within a front, each next point is the one that adds most to the
    hypervolume of those before it, up to one beyond the worst rank of each objective; of those that add the same, the one that
    is better in the first objective. Whatever k, the first k of a front then dominate at least 1 - 1/e of what the best k can
    (hypervolume is submodular: Nemhauser et al. 1978).
    """
    found = np.zeros(len(losses), dtype=np.int64)
    if not len(losses):
        return found
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in losses.T], axis=1)
    points, member, copies = np.unique(ranks, axis=0, return_inverse=True, return_counts=True)
    reference = tuple(int(worst) + 1 for worst in points.max(axis=0))
    place, better = np.zeros(len(points), dtype=np.int64), 0
    for front in _fronts(points):
        number: dict[Point, int] = {tuple(int(x) for x in points[row]): row for row in front}
        for point in by_contribution(list(number), reference):
            place[number[point]] = better
            better += int(copies[number[point]])
    return place[member.reshape(-1)]


def by_contribution(points: Sequence[Point], reference: Point) -> list[Point]:
    """Different points, ordered so that each next adds most to the hypervolume of those before it; ties by their coordinates."""
    chosen: list[Point] = []
    # What a point adds can only shrink: who leads by its stale number and keeps the lead by the fresh one is next.
    waiting = [(-_box(point, reference), point, 0) for point in points]
    heapq.heapify(waiting)
    while waiting:
        _, point, known = heapq.heappop(waiting)
        if known == len(chosen):
            chosen.append(point)
        else:
            heapq.heappush(waiting, (-added(point, chosen, reference), point, len(chosen)))
    return chosen


def added(point: Point, others: Sequence[Point], reference: Point) -> float:
    """The hypervolume that a point dominates and none of the others does."""
    covered = [tuple(map(max, point, other)) for other in others]
    return _box(point, reference) - hypervolume(covered, reference)


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


def _fronts(points: np.ndarray) -> list[list[int]]:
    """Row numbers of different points (n, objectives) by front, the non-dominated first."""
    # Different points: no worse in every objective is better in one.
    dominates = np.all(points[:, None] <= points[None], axis=2) & ~np.eye(len(points), dtype=bool)
    better, left, fronts = dominates.sum(axis=0), np.ones(len(points), dtype=bool), []
    while left.any():
        front = np.flatnonzero(left & (better == 0))
        fronts.append([int(row) for row in front])
        left[front] = False
        better = better - dominates[front].sum(axis=0)
    return fronts


def _box(point: Point, reference: Point) -> float:
    return math.prod(max(0.0, high - low) for low, high in zip(point, reference, strict=True))
