"""Fréchet distances of few images: allowed, and said loudly."""

import warnings

import pytest
import torch

from mergevq.metrics import FeatureStatistics, frechet_distance

DIM = 12


def statistics(count: int, seed: int) -> FeatureStatistics:
    found = FeatureStatistics()
    found.update(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)))
    return found


@pytest.mark.parametrize("counts", [(DIM, 100), (100, DIM), (3, 3)])
def test_no_more_images_than_features_are_measured_with_a_warning(counts: tuple[int, int]) -> None:
    with pytest.warns(UserWarning, match=f"{min(counts)} images for {DIM} features"):
        assert frechet_distance(statistics(counts[0], 0), statistics(counts[1], 1)) > 0


def test_one_image_more_than_features_is_enough_for_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(statistics(DIM + 1, 0), statistics(DIM + 1, 1))


@pytest.mark.filterwarnings("ignore:.*images for")
def test_few_images_bias_the_distance_upwards_as_the_warning_says() -> None:
    def between_halves(count: int) -> float:
        return frechet_distance(statistics(count, 0), statistics(count, 1))

    distances = [between_halves(count) for count in (DIM // 2, 4 * DIM, 40 * DIM)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 20 * distances[-1]
