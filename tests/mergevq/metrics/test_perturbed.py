"""pFID: the mean over a grid of perturbations, the same however the images are cut into batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mergevq
from mergevq.errors import InputError
from mergevq.metrics import (
    FeatureStatistics,
    RandomFeaturesConfig,
    extractor,
    frechet_distance,
    mean_distance,
    merged_cells,
    perturbed_distance_name,
    perturbed_distances,
    perturbed_source_statistics,
    perturbed_statistics,
)
from mergevq.perturbation import Perturbation, decode_perturbed

pytestmark = pytest.mark.filterwarnings("ignore:.*images for .* features")
GRID = (Perturbation(0.5, 4), Perturbation(0.9, 4), Perturbation(0.9, 40))
IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def tokenizer() -> mergevq.MergeVQ:
    torch.manual_seed(0)
    return mergevq.create("test_gr").eval()


def statistics(features: Tensor) -> FeatureStatistics:
    made = FeatureStatistics()
    made.update(features)
    return made


@torch.inference_mode()
def test_pfid_is_the_mean_of_the_cells_distances_however_images_are_batched(
    tokenizer: mergevq.MergeVQ,
) -> None:
    network, ids = extractor(RandomFeaturesConfig()), torch.arange(8)

    def cells(*batches: int) -> dict[str, float]:
        parts, sources = [], []
        for images, names in zip(IMAGES.split(list(batches)), ids.split(list(batches)), strict=True):
            encoded = tokenizer.encode(images, 9)
            parts.append(perturbed_statistics(tokenizer, network, encoded, names, GRID))
            sources.append(perturbed_source_statistics(tokenizer, network, encoded, names, (0.5, 0.9)))
        real = statistics(network(IMAGES))
        return {
            **perturbed_distances(real, merged_cells(parts)),
            **perturbed_distances(real, merged_cells(sources)),
        }

    together = cells(8)
    assert cells(3, 5) == pytest.approx(together, rel=1e-4)
    assert list(together) == ["rate 0.5, of 4", "rate 0.9, of 4", "rate 0.9, of 40", "rate 0.5", "rate 0.9"]
    encoded = tokenizer.encode(IMAGES, 9)
    images = decode_perturbed(tokenizer, encoded, ids, GRID[1])
    by_hand = frechet_distance(statistics(network(IMAGES)), statistics(network(images)))
    assert together["rate 0.9, of 4"] == pytest.approx(by_hand, rel=1e-6)
    assert mean_distance(together) == pytest.approx(sum(together.values()) / 5)


def test_its_name_is_pfid_for_the_standard_inception_alone() -> None:
    network = extractor(RandomFeaturesConfig())
    assert perturbed_distance_name(network) == "prfd_random_v1"
    network.standard = True
    assert perturbed_distance_name(network) == "pfid"


def test_parts_of_different_grids_and_no_cell_at_all_are_refused() -> None:
    with pytest.raises(InputError, match="use one grid"):
        merged_cells([{"a": FeatureStatistics()}, {"b": FeatureStatistics()}])
    with pytest.raises(InputError, match="at least one"):
        mean_distance({})
