"""Merge schedules and kept-token distributions: the published tables, and every reachable count."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
from pydantic import TypeAdapter, ValidationError

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.keep import (
    ExponentialKeepConfig,
    GaussianKeepConfig,
    KeepDistributionConfig,
    ListedKeepConfig,
    UniformKeepConfig,
    draw,
    published,
)
from mergevq.merge_schedule import merge_schedule, reachable, scaled_keep

PUBLISHED = {
    (256, 196): (12, 6, 6, 5, 5, 5, 4, 4, 4, 3, 3, 3),
    (256, 144): (12, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 5),
    (256, 100): (24, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7),
    (256, 64): (29, 22, 21, 19, 18, 16, 15, 13, 12, 10, 9, 8),
    (256, 49): (23, 25, 23, 22, 20, 18, 17, 15, 13, 12, 10, 9),
    (256, 36): (25, 26, 24, 23, 21, 19, 18, 16, 14, 13, 11, 10),
    (1024, 576): (54, 53, 50, 46, 43, 39, 36, 32, 29, 25, 22, 19),
    (1024, 400): (83, 73, 68, 63, 59, 54, 49, 44, 40, 35, 30, 26),
    (1024, 256): (101, 90, 84, 78, 72, 66, 61, 55, 49, 43, 37, 32),
    (1024, 196): (108, 96, 90, 84, 78, 72, 65, 59, 53, 47, 41, 35),
}


@pytest.mark.parametrize("counts", PUBLISHED)
def test_the_published_schedules_come_out_exactly(counts: tuple[int, int]) -> None:
    assert merge_schedule(*counts, 12) == PUBLISHED[counts]


@pytest.mark.parametrize("grid", [64, 256, 1024])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8, 12])
def test_every_reachable_count_is_reached_exactly_within_every_layers_room(grid: int, depth: int) -> None:
    for keep in reachable(grid, depth):
        tokens = grid + 1
        for r in merge_schedule(grid, keep, depth):
            assert 0 <= r <= (tokens - 1) // 2
            tokens -= r
        assert tokens == keep + 1


@pytest.mark.parametrize("grid", [64, 256, 1024])
def test_no_layer_could_have_reached_fewer(grid: int) -> None:
    assert reachable(grid, 12) == range(1, grid + 1)
    assert reachable(grid, 1) == range(grid - grid // 2, grid + 1)
    assert reachable(grid, 0) == range(grid, grid + 1)


@pytest.mark.parametrize("keep", [0, 7, 65])
def test_an_unreachable_count_names_the_reachable_ones(keep: int) -> None:
    with pytest.raises(InputError, match=rf"cannot keep {keep} of 64 tokens with 3 layers.*8 to 64"):
        merge_schedule(64, keep, 3)


def test_the_schedule_is_made_anew_for_another_resolution() -> None:
    keep = scaled_keep(144, 256, 196)
    assert keep == 110
    assert sum(merge_schedule(196, keep, 12)) == 86


def test_inflection_moves_merging_between_early_and_late_layers() -> None:
    early, flat, late = (merge_schedule(256, 144, 12, inflection=i) for i in (-0.5, 0.0, 0.5))
    assert sum(early[:6]) > sum(flat[:6]) > sum(late[:6])
    assert sum(early) == sum(flat) == sum(late) == 112


# Section 5.2 of our specification: the probabilities of the released code.
TABLES = [
    (
        GaussianKeepConfig(keep=(121, 256), peak=144),
        256,
        (121, 144, 169, 196, 225, 256),
        (0.118, 0.668, 0.118, 0.032, 0.032, 0.032),
    ),
    (
        GaussianKeepConfig(keep=(49, 144), peak=64),
        256,
        (49, 64, 81, 100, 121, 144),
        (0.118, 0.668, 0.118, 0.032, 0.032, 0.032),
    ),
    (
        GaussianKeepConfig(keep=(225, 529), peak=256),
        1024,
        (225, 256, 289, 324, 361, 400, 441, 484, 529),
        (0.108, 0.610, 0.108, 0.029, 0.029, 0.029, 0.029, 0.029, 0.029),
    ),
    (ExponentialKeepConfig(keep=(36, 100)), 256, (36, 49, 64, 81, 100), (0.747, 0.132, 0.049, 0.037, 0.036)),
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table[0].kind}-{table[2][0]}-{table[2][-1]}")
def test_the_released_probability_tables_come_out(table: tuple) -> None:
    distribution, grid, candidates, probabilities = table
    assert distribution.candidates(grid) == candidates
    assert distribution.probabilities(grid) == pytest.approx(probabilities, abs=6e-4)
    assert sum(distribution.probabilities(grid)) == pytest.approx(1)


def test_the_long_exponential_of_variant_g_comes_out() -> None:
    probabilities = ExponentialKeepConfig(keep=(256, 1024)).probabilities(1024)
    assert len(probabilities) == 17
    assert probabilities[:3] == pytest.approx((0.523, 0.092, 0.034), abs=6e-4)
    assert all(0.0245 < p < 0.0265 for p in probabilities[3:])


@pytest.mark.parametrize(
    ("variant", "stage", "kind", "ends"),
    [
        ("r", 1, "exponential", (36, 100)),
        ("gr", 1, "gaussian", (121, 225)),
        ("gr", 2, "gaussian", (144, 256)),
        ("g", 1, "gaussian", (225, 400)),
        ("g", 2, "exponential", (256, 1024)),
    ],
)
def test_the_papers_distributions_have_its_ranges(
    variant: str, stage: int, kind: str, ends: tuple[int, int]
) -> None:
    distribution = published(variant, stage)  # type: ignore[arg-type]
    candidates = distribution.candidates(1024)
    assert (distribution.kind, (candidates[0], candidates[-1])) == (kind, ends)


def test_merge_ratios_hold_at_any_resolution() -> None:
    distribution = UniformKeepConfig(merge_ratio=(0.4, 0.8), square=False)
    for grid in (64, 256, 1024):
        candidates = distribution.candidates(grid)
        assert candidates[0] == round(0.2 * grid)
        assert candidates[-1] == round(0.6 * grid)
    assert ListedKeepConfig(merge_ratios=(0.75, 0.0)).candidates(64) == (16, 64)


def test_a_list_draws_each_count_as_often_as_it_stands_there() -> None:
    distribution = ListedKeepConfig(counts=(16, 25, 25, 36))
    assert distribution.probabilities(64) == (0.25, 0.5, 0.25)


def test_draws_depend_on_seed_and_step_alone_and_follow_the_probabilities() -> None:
    distribution = ExponentialKeepConfig(keep=(36, 100))
    drawn = [draw(distribution, 256, seed=3, step=step) for step in range(4000)]
    assert drawn == [draw(distribution, 256, seed=3, step=step) for step in range(4000)]
    assert drawn != [draw(distribution, 256, seed=4, step=step) for step in range(4000)]
    counts = Counter(drawn)
    for candidate, probability in zip(
        distribution.candidates(256), distribution.probabilities(256), strict=True
    ):
        assert counts[candidate] / 4000 == pytest.approx(probability, abs=0.03)


def test_neighbouring_steps_are_not_alike() -> None:
    drawn = [
        draw(UniformKeepConfig(keep=(1, 64), square=False), 64, seed=0, step=step) for step in range(500)
    ]
    longest, run = 1, 1
    for before, after in pairwise(drawn):
        run = run + 1 if before == after else 1
        longest = max(longest, run)
    assert longest <= 4


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "uniform"}, "give the kept counts once"),
        ({"kind": "uniform", "keep": [9, 4]}, r"keep \[9, 4\] must be \[lowest, highest\]"),
        ({"kind": "gaussian", "keep": [4, 9]}, "give the peak once"),
        ({"kind": "list", "keep": [4, 9]}, "a list needs counts or merge_ratios"),
        ({"kind": "uniform", "merge_ratio": [0.5, 1.0]}, "less than 1"),
    ],
)
def test_a_wrong_distribution_is_explained(tree: dict, message: str) -> None:
    with pytest.raises((ValidationError, InputError), match=message):
        TypeAdapter(KeepDistributionConfig).validate_python(tree)


def test_a_range_without_a_square_says_so() -> None:
    with pytest.raises(InputError, match="no square count lies between 17 and 24"):
        UniformKeepConfig(keep=(17, 24)).candidates(64)


def test_configurations_are_frozen_and_keyword_only() -> None:
    distribution = parse(UniformKeepConfig, {"keep": [4, 9]})
    with pytest.raises(FrozenInstanceError):
        distribution.keep = (1, 2)  # type: ignore[misc]
    with pytest.raises(ValidationError, match="positional"):
        UniformKeepConfig((4, 9))  # type: ignore[misc]
