"""Images for a slider: the same layout at every step, originals beside what became of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergevq_platform.figures.pairs import GAP, SPACE, TILE, cluster_pairs, reconstruction_pairs, tile, tiled


def test_each_original_stands_beside_its_reconstruction_at_every_count() -> None:
    originals = torch.full((8, 3, 32, 32), -1.0)
    found = reconstruction_pairs(originals, {9: torch.zeros(8, 3, 32, 32), 64: torch.ones(8, 3, 32, 32)})
    assert {image.shape for image in found.values()} == {
        (4 * (TILE + SPACE) - SPACE, 2 * (2 * TILE + GAP + SPACE) - SPACE, 3)
    }
    for keep, value in ((9, 128), (64, 255)):
        assert (found[keep][0, 0] == 0).all()
        assert (found[keep][0, TILE + GAP] == value).all()


def test_images_of_any_shape_are_tiled_and_large_ones_averaged_down() -> None:
    wide = tile(np.full((300, 600, 3), 7, np.uint8))
    assert wide.shape == (TILE // 2, TILE, 3)
    assert tile(np.zeros((48, 64, 3), np.uint8)).shape == (96, TILE, 3)
    assert tiled([wide] * 3).shape[1] == TILE, "three wide ones stand above each other"
    pairs = cluster_pairs(torch.zeros(2, 3, 16, 32), {4: torch.arange(8).repeat(2, 1) // 2})
    assert pairs[4].ndim == 3


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_no_image_is_lost(count: int) -> None:
    canvas = tiled([np.full((10, 10, 3), index, np.uint8) for index in range(count)])
    assert set(np.unique(canvas)) - {255} == set(range(count))
