"""Fronts and hypervolumes against their definitions."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergevq_platform.figures.pareto import front, hypervolume

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    kept = {points[i] for i in front(points)}

    def beaten(p: tuple[float, float]) -> bool:
        return any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)

    assert kept == {p for p in points if not beaten(p)}


@given(POINTS)
def test_the_front_rises_without_repetitions(points: list[tuple[float, float]]) -> None:
    stairs = [points[i] for i in front(points)]
    assert stairs == sorted(set(stairs))
    assert all(a[1] < b[1] for a, b in itertools.pairwise(stairs))


@given(POINTS)
def test_the_hypervolume_counts_the_dominated_cells(points: list[tuple[float, float]]) -> None:
    reference = (5, 2)
    cells = sum(
        any(p[0] <= x and p[1] >= y + 1 for p in points)
        for x in range(-1, reference[0])
        for y in range(reference[1], 8)
    )
    assert hypervolume(points, reference) == pytest.approx(cells)


def test_the_hypervolume_of_a_fine_front_is_the_area_under_it() -> None:
    rng = random.Random(0)
    points = [(x, 1 - (1 - x) ** 2) for x in (rng.random() for _ in range(4000))]
    assert hypervolume(points, (1.0, 0.0)) == pytest.approx(2 / 3, abs=0.01)
    assert hypervolume([(2.0, -1.0)], (1.0, 0.0)) == 0
