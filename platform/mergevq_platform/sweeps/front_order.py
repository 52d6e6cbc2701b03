"""The order of points with several objectives: by non-dominated front, then by what each adds to the hypervolume.

Objectives are losses: less is better. Every one is first replaced by its rank among the points, so that neither its unit nor any
other increasing change of its scale (a distance or its logarithm, percent or a fraction) matters, and a value far off moves
nothing but itself. Ranks are whole numbers: hypervolumes and ties are exact.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from mergevq_platform.sweeps.hypervolumes import Boxes, Point, Stairs, box


def places(losses: np.ndarray) -> np.ndarray:
    """The place (n,) int64 of each point of finite losses (n, objectives): how many points are better; equal points share one.

    Fronts by non-dominated sorting (Deb et al. 2002, NSGA-II). Within a front, each next point is the one that adds most to the
    hypervolume of those before it, up to one beyond the worst rank of each objective; of those that add the same, the one that
    is better in the first objective. Whatever k, the first k of a front then dominate at least 1 - 1/e of what the best k can
    (hypervolume is submodular: Nemhauser et al. 1978).
    """
    if not len(losses):
        return np.zeros(0, dtype=np.int64)
    points, member, copies = _ranked(losses)
    place, better = np.zeros(len(points), dtype=np.int64), 0
    for front in _fronts(points):
        for row in _ordered(points, front):
            place[row] = better
            better += int(copies[row])
    return place[member]


def place_of(losses: np.ndarray, own: int) -> int:
    """The place of the point in row `own`, as `places` has it, for less work: nothing behind it is put in order."""
    points, member, copies = _ranked(losses)
    better, row = 0, int(member[own])
    for front in _fronts(points):
        if row in front:
            before = itertools.takewhile(lambda other: other != row, _ordered(points, front))
            return better + sum(int(copies[other]) for other in before)
        better += int(copies[front].sum())
    raise AssertionError("every point is on a front")


def by_contribution(points: Sequence[Point], reference: Point) -> Iterator[Point]:
    """Different points, ordered so that each next adds most to the hypervolume of those before it; ties by their coordinates."""
    covered = Stairs(reference) if len(reference) == 2 else Boxes(reference)
    chosen = 0
    # What a point adds can only shrink: who leads by its stale number and keeps the lead by the fresh one is next.
    waiting = [(-box(point, reference), point, 0) for point in points]
    heapq.heapify(waiting)
    while waiting:
        _, point, known = heapq.heappop(waiting)
        if known == chosen:
            chosen += 1
            covered.insert(point)
            yield point
        else:
            heapq.heappush(waiting, (-covered.added(point), point, chosen))


def _ranked(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(different points by their ranks, the row there of each point, how many points are equal to each)."""
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in losses.T], axis=1)
    points, member, copies = np.unique(ranks, axis=0, return_inverse=True, return_counts=True)
    return points, member.reshape(-1), copies


def _fronts(points: np.ndarray) -> Iterator[np.ndarray]:
    """Row numbers of different points (n, objectives) by front, the non-dominated first."""
    # Different points: no worse in every objective is better in one.
    dominates = ~np.eye(len(points), dtype=bool)
    for column in points.T:
        dominates &= column[:, None] <= column[None]
    better, left = np.count_nonzero(dominates, axis=0), np.ones(len(points), dtype=bool)
    while left.any():
        front = np.flatnonzero(left & (better == 0))
        yield front
        left[front] = False
        better -= np.count_nonzero(dominates[front], axis=0)


def _ordered(points: np.ndarray, front: np.ndarray) -> Iterator[int]:
    """The rows of a front, each next one adding most to the hypervolume of those before it."""
    reference = tuple(int(worst) + 1 for worst in points.max(axis=0))
    number: dict[Point, int] = {tuple(points[row].tolist()): int(row) for row in front}
    return (number[point] for point in by_contribution(list(number), reference))
