"""Kernel distance, density and coverage, and histograms of codes: by their published formulas, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics import CodeUsage, density_coverage, histogram_distance, kernel_distance
from mergevq.metrics.kernel import subset_distances, subset_plan, summarised


def features(count: int, seed: int, spread: float = 1.0, dim: int = 6) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * spread


def unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Bińkowski et al. 2018, equation 4, over all pairs one by one."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    def own(z: np.ndarray) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return sum(pairs) / len(pairs)

    return own(x) + own(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_the_kernel_distance_is_that_of_all_pairs_where_there_is_one_subset() -> None:
    images, reference = features(9, 0), features(9, 1, 1.3)
    found = kernel_distance(images, reference)
    assert found.mean == pytest.approx(unbiased_mmd(images.double().numpy(), reference.double().numpy()))
    assert (found.std, found.subsets, found.subset_images) == (0, 1, 9)


def test_it_is_unbiased_and_shares_of_its_subsets_make_the_whole() -> None:
    alike = kernel_distance(features(400, 0), features(400, 1), subsets=60, subset_images=50)
    apart = kernel_distance(features(400, 0), features(400, 1, 1.3), subsets=60, subset_images=50)
    assert abs(alike.mean) < 0.2 * apart.mean
    images, reference = features(40, 2), features(30, 3)
    plan = subset_plan(40, 30, subsets=7, subset_images=20)
    parts = [subset_distances(images, reference, plan, range(a, b)) for a, b in ((0, 3), (3, 4), (4, 7))]
    whole = kernel_distance(images, reference, subsets=7, subset_images=20)
    assert summarised(torch.cat(parts), plan) == whole
    assert kernel_distance(images, reference, subsets=3).subset_images == 30


def brute_density_coverage(fake: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    """Naeem et al. 2020, equations 3 and 4, with every distance in one table."""
    among = np.linalg.norm(real[:, None] - real[None], axis=2)
    radius = np.sort(among, axis=1)[:, k]  # the 0th is itself
    inside = np.linalg.norm(real[:, None] - fake[None], axis=2) < radius[:, None]
    return float(inside.sum() / (k * len(fake))), float(inside.any(1).mean())


@pytest.mark.parametrize(("k", "chunk"), [(5, 4096), (3, 7), (1, 50)])
def test_density_and_coverage_are_those_of_the_published_formulas(k: int, chunk: int) -> None:
    for spread in (0.5, 1.0, 2.0):
        fake, real = features(60, 0, spread), features(83, 1)
        found = density_coverage(fake, real, k=k, chunk=chunk)
        expected = brute_density_coverage(fake.double().numpy(), real.double().numpy(), k)
        assert (found.density, found.coverage) == pytest.approx(expected)
        assert 0 < found.coverage < 1
    assert (
        density_coverage(features(60, 0, 0.3), features(83, 1)).density > 1
    )  # crowded where the reference is dense


def test_an_outlier_of_the_reference_changes_density_little() -> None:
    fake, real = features(200, 0) + 3, features(200, 1)
    outlier = torch.cat([real, torch.full((1, 6), 40.0)])
    before, after = (density_coverage(fake, bank).density for bank in (real, outlier))
    assert after - before <= 1 / 5 + 1e-9  # its ball may hold every image, and is one of the k-fold count


def counted(codes: list[int], size: int = 8) -> CodeUsage:
    usage = CodeUsage(size)
    usage.update(torch.tensor(codes))
    return usage


def test_the_distance_of_histograms_is_hellingers() -> None:
    a, b = counted([0, 0, 1, 2, -1]), counted([0, 1, 1, 3])
    p, q = np.array([2, 1, 1, 0]) / 4, np.array([1, 2, 0, 1]) / 4
    by_hand = np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum()) / np.sqrt(2)
    assert histogram_distance(a, b) == pytest.approx(by_hand)
    assert histogram_distance(a, b) == histogram_distance(b, a)
    assert histogram_distance(a, counted([0, 0, 1, 2] * 5)) == 0
    assert histogram_distance(counted([1, 2]), counted([3])) == pytest.approx(1)


def test_what_cannot_be_compared_is_refused_in_one_line() -> None:
    nan = features(5, 0)
    nan[2, 1] = torch.nan
    for measure, said in [
        (lambda: kernel_distance(features(5, 0), features(5, 1, dim=4)), "one extractor"),
        (lambda: kernel_distance(features(1, 0), features(5, 1)), "at least 2 images"),
        (lambda: kernel_distance(nan, features(5, 1)), "NaN"),
        (
            lambda: density_coverage(features(5, 0), features(9, 1)),
            "5 generated images do not have 5 neighbours",
        ),
        (lambda: histogram_distance(counted([1]), counted([1], 9)), "one tokenizer"),
        (lambda: histogram_distance(counted([1]), CodeUsage(8)), "no codes"),
        (lambda: histogram_distance(counted([-1]), counted([1])), "no codes"),
    ]:
        with pytest.raises(InputError, match=said) as raised:
            measure()
        assert "\n" not in str(raised.value)
