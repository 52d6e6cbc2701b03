"""What an allocator saves at equal quality: arithmetic on the quality of every image at every count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergevq_platform.evaluation.equal_quality import (
    RESAMPLES,
    mixture_at,
    quality_at,
    resampled_means,
    savings,
    tokens_at,
)

MENU = (4, 9, 16, 25)
COUNTS = np.array(MENU, float)


def qualities(images: int, seed: int = 0) -> np.ndarray:
    """Quality (B, M) that rises with the count, in images that need more and less."""
    random = np.random.default_rng(seed)
    hardness = random.uniform(0.2, 3, (images, 1))
    return 30 - hardness * 20 / np.sqrt(COUNTS) + random.normal(0, 0.01, (images, len(MENU)))


@given(st.lists(st.floats(0.01, 5), min_size=4, max_size=4), st.floats(4, 25))
def test_tokens_at_equal_quality_undo_the_quality_at_tokens(rises: list[float], tokens: float) -> None:
    means = np.cumsum(rises)[None]
    quality = quality_at(np.array([tokens]), COUNTS, means)
    assert tokens_at(quality, COUNTS, means)[0] == pytest.approx(tokens, abs=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.floats(4, 25))
def test_a_mixture_of_two_counts_is_at_least_as_good_as_one_count(values: list[float], tokens: float) -> None:
    means, at = np.array([values]), np.array([tokens])
    assert mixture_at(at, COUNTS, means)[0] >= quality_at(at, COUNTS, means)[0] - 1e-9


def test_the_first_crossing_counts_where_more_tokens_are_worse() -> None:
    means = np.array([[10.0, 14.0, 12.0, 16.0]])
    assert tokens_at(np.array([14.0]), COUNTS, means)[0] == 9
    assert tokens_at(np.array([15.0]), COUNTS, means)[0] == 16 + 9 * 0.75


def test_a_quality_beyond_the_menu_is_worth_no_more_than_its_last_count() -> None:
    means = np.array([[10.0, 14.0, 18.0, 16.0]] * 2)
    assert list(tokens_at(np.array([20.0, 5.0]), COUNTS, means)) == [25, 4]


@pytest.mark.parametrize("count", MENU)
def test_one_count_for_all_saves_nothing(count: int) -> None:
    quality = qualities(50)
    found = savings(MENU, quality, {"same": np.full(50, count)})["same"]
    assert np.allclose(np.array(found[1:]), 0, atol=1e-6)
    assert found.equal_tokens.value == pytest.approx(count)


def test_tokens_for_the_images_that_need_them_save_and_for_the_others_cost() -> None:
    quality = qualities(400)
    order = np.argsort(quality[:, -1] - quality[:, 0])
    easy = np.isin(np.arange(400), order[:200])
    right, wrong = np.where(easy, 9, 16), np.where(easy, 16, 9)
    found = savings(MENU, quality, {"right": right, "wrong": wrong})
    assert found["right"].saved_tokens.low > 0
    assert found["right"].gain.low > 0
    assert found["right"].blind_gain.low > 0
    assert found["wrong"].saved_tokens.high < 0
    for saving in found.values():
        for interval in saving:
            assert interval.low <= interval.value <= interval.high


def test_counts_that_do_not_look_at_the_images_gain_nothing_over_a_blind_mixture() -> None:
    quality = qualities(300)
    blind = np.random.default_rng(1).choice(MENU, 300)
    assert savings(MENU, quality, {"blind": blind})["blind"].blind_gain.low < 0


def test_a_saving_is_the_same_whatever_else_is_measured() -> None:
    quality = qualities(60)
    mine, other = np.where(np.arange(60) % 2, 4, 16), np.full(60, 9)
    alone = savings(MENU, quality, {"mine": mine})["mine"]
    beside = savings(MENU, quality, {"other": other, "mine": mine})["mine"]
    assert np.allclose(np.array(alone), np.array(beside), rtol=1e-12)


def test_resampled_means_have_the_mean_and_the_standard_error_of_the_images() -> None:
    values = np.random.default_rng(2).normal(3, 2, (500, 1))
    means = resampled_means(values, seed=0)
    assert means.shape == (RESAMPLES, 1)
    assert means.mean() == pytest.approx(values.mean(), abs=0.02)
    assert means.std() == pytest.approx(values.std() / np.sqrt(500), rel=0.1)
