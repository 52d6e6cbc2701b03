"""Metrics whose features lie on a GPU give the CPU's numbers and do not make the device wait."""

from __future__ import annotations

import pytest
import torch

from mergevq.metrics import (
    CodeUsage,
    FeatureStatistics,
    RandomFeaturesConfig,
    extractor,
    frechet_distance,
    knn_classify,
    linear_probe,
)


def features(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_is_the_cpus() -> None:
    distances = []
    for device in ("cpu", "cuda"):
        sides = []
        for seed in (0, 1):
            statistics = FeatureStatistics()
            for part in (features(700, 48, seed) * (1 + 0.2 * seed)).to(device).split(64):
                statistics.update(part)
            sides.append(statistics)
        distances.append(frechet_distance(*sides))
    assert distances[1] == pytest.approx(distances[0], rel=1e-6)


def test_code_counts_are_exact_and_no_update_waits() -> None:
    indices = torch.randint(0, 64, (16, 9), generator=torch.Generator().manual_seed(0))
    here, there = CodeUsage(64), CodeUsage(64)
    here.update(indices)
    there.update(indices.cuda())
    onto = indices.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there.update(onto)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    here.update(indices)
    assert here.compute() == there.compute()


def test_probe_and_neighbours_are_the_cpus() -> None:
    y = torch.arange(600) % 3
    x = features(600, 24, 0) + 0.5 * features(3, 24, 1)[y]
    probes = [
        linear_probe(x[:400].to(d), y[:400].to(d), x[400:].to(d), y[400:].to(d)) for d in ("cpu", "cuda")
    ]
    assert abs(probes[0].top1 - probes[1].top1) <= 0.51  # one image of 200
    assert probes[0].C == probes[1].C
    knn = [knn_classify(x[:400].to(d), y[:400].to(d), x[400:].to(d), y[400:].to(d)) for d in ("cpu", "cuda")]
    assert knn[0] == knn[1]


def test_the_fixed_extractor_gives_the_cpus_features() -> None:
    network = extractor(RandomFeaturesConfig())
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    here = network(images)
    torch.testing.assert_close(network.cuda()(images.cuda()).cpu(), here, rtol=1e-4, atol=1e-4)
