"""The order by fronts and hypervolume: what is dominated never comes first, and nothing but the order of values matters."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergevq_platform.figures import pareto
from mergevq_platform.sweeps.front_order import by_contribution, place_of, places
from mergevq_platform.sweeps.hypervolumes import Boxes, hypervolume


def arrays(objectives: int, *, most: int = 9) -> st.SearchStrategy[np.ndarray]:
    """Losses (n, objectives), with ties."""
    row = st.tuples(*[st.integers(0, 5)] * objectives)
    return st.lists(row, min_size=1, max_size=most).map(lambda rows: np.array(rows, dtype=np.float64))


LOSSES = st.integers(1, 4).flatmap(arrays)
POINTS = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.lists(st.tuples(*[st.integers(0, 5)] * n), max_size=7, unique=True), st.just((5,) * n)
    )
)


def cells(points: list[tuple[int, ...]], reference: tuple[int, ...]) -> int:
    """The hypervolume, counted unit cube by unit cube."""
    return sum(
        any(all(a <= b for a, b in zip(point, cube, strict=True)) for point in points)
        for cube in product(*map(range, reference))
    )


@given(POINTS)
def test_the_hypervolume_is_that_of_counted_cubes(
    given: tuple[list[tuple[int, ...]], tuple[int, ...]],
) -> None:
    points, reference = given
    assert hypervolume(points, reference) == cells(points, reference)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=9))
def test_two_objectives_have_the_area_of_the_reports(points: list[tuple[int, int]]) -> None:
    area = pareto.hypervolume([(float(loss), -float(other)) for loss, other in points], (9.0, -9.0))
    assert hypervolume(points, (9, 9)) == area


@given(POINTS)
def test_each_next_point_adds_most_of_those_that_are_left(
    given: tuple[list[tuple[int, ...]], tuple[int, ...]],
) -> None:
    points, reference = given
    left, chosen = list(points), []
    while left:
        now = cells(chosen, reference)
        best = min(left, key=lambda point: (now - cells([*chosen, point], reference), point))
        left.remove(best)
        chosen.append(best)
    assert list(by_contribution(points, reference)) == chosen


@given(LOSSES)
def test_a_dominated_point_never_comes_before_its_better(losses: np.ndarray) -> None:
    place = places(losses)
    for a, b in product(range(len(losses)), repeat=2):
        if (losses[a] <= losses[b]).all() and (losses[a] < losses[b]).any():
            assert place[a] < place[b]


@given(LOSSES)
def test_a_place_is_the_number_of_better_points(losses: np.ndarray) -> None:
    place = places(losses)
    assert [int((place < own).sum()) for own in place] == place.tolist()
    for a, b in product(range(len(losses)), repeat=2):
        assert (place[a] == place[b]) == bool((losses[a] == losses[b]).all())


@given(LOSSES)
def test_the_place_of_one_point_is_that_among_all_places(losses: np.ndarray) -> None:
    assert [place_of(losses, own) for own in range(len(losses))] == places(losses).tolist()


@given(LOSSES, st.randoms(use_true_random=False))
def test_the_order_in_which_points_are_given_changes_nothing(losses: np.ndarray, random: object) -> None:
    order = list(range(len(losses)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert (places(losses[order]) == places(losses)[order]).all()


@given(LOSSES)
def test_units_and_increasing_scales_change_nothing(losses: np.ndarray) -> None:
    place = places(losses)
    assert (places(losses * np.array([1e6, 1e-6, 1.0, 3.0])[: losses.shape[1]]) == place).all()
    assert (places(np.exp(losses)) == place).all()


def test_one_objective_is_sorted() -> None:
    assert places(np.array([[3.0], [1.0], [2.0], [1.0]])).tolist() == [3, 0, 2, 0]


def test_a_front_begins_in_its_middle_and_then_spreads() -> None:
    knee, ends, crowd, beaten = (3.0, 3.0), [(0.0, 9.0), (9.0, 0.0)], (3.1, 2.9), (5.0, 5.0)
    place = places(np.array([beaten, crowd, ends[0], knee, ends[1]]))
    assert place[0] == 4
    assert sorted(place[1:4:2]) == [0, 3] or place[3] == 0
    assert max(place[2], place[4]) < 4


def test_two_thousand_trials_on_one_front_are_all_ordered() -> None:
    first = np.random.default_rng(0).random(2000)
    assert sorted(places(np.stack([first, 1 - first], axis=1))) == list(range(2000))


def test_a_point_of_three_objectives_asks_few_of_very_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    # Slices over all points of a front of three hundred took ten seconds.
    shares = -np.log(np.random.default_rng(0).random((300, 3)))
    losses = shares / shares.sum(axis=1, keepdims=True)
    given: list[int] = []
    monkeypatch.setattr(
        "mergevq_platform.sweeps.hypervolumes.hypervolume", lambda points, _: given.append(len(points)) or 0.0
    )
    boxes = Boxes((1.0, 1.0, 1.0))
    for row in losses[1:]:
        boxes.insert(tuple(row))
    boxes.added(tuple(losses[0]))
    assert 0 < given[0] < 60


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_no_points_have_no_places(objectives: int) -> None:
    assert places(np.empty((0, objectives))).shape == (0,)
