"""Feature statistics of an image set: the same in parts and at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mergevq.metrics import InceptionExtractor, InceptionScore, RandomFeaturesConfig, extractor
from mergevq.metrics.inception import InceptionOutputs
from mergevq_platform.evaluation.results import merge
from mergevq_platform.evaluation.statistics import ImageSetStatistics, image_set_statistics


class Small(InceptionExtractor):
    """Stands where the Inception does, with outputs of a few numbers."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def outputs(self, images: Tensor) -> InceptionOutputs:
        flat = images.flatten(1)
        return InceptionOutputs(pool=flat[:, :4], spatial=flat[:, 4:7], logits=3 * flat[:, 7:12])


def statistics_in_parts(network: nn.Module, images: Tensor, size: int, features: int) -> ImageSetStatistics:
    places = torch.arange(len(images))
    parts = [
        image_set_statistics(network, part, where, len(images), features=features)  # type: ignore[arg-type]
        for part, where in zip(images.split(size), places.split(size), strict=True)
    ]
    return merge(parts)


def test_parts_are_the_whole_and_keep_the_first_features() -> None:
    images = torch.rand(20, 3, 16, 16) * 2 - 1
    network = extractor(RandomFeaturesConfig())
    whole, parts = (statistics_in_parts(network, images, size, 12) for size in (20, 8))
    torch.testing.assert_close(parts.pool.moments().covariance, whole.pool.moments().covariance)
    assert parts.features.shape == (12, network.identity["dim"])
    torch.testing.assert_close(torch.from_numpy(parts.features), network(images[:12]))
    assert whole.spatial is None
    assert whole.score is None


def test_an_inception_gives_score_and_inner_maps_too() -> None:
    images = torch.rand(24, 3, 4, 4) * 2 - 1
    seen, outputs = statistics_in_parts(Small(), images, 7, 24), Small().outputs(images)
    score = InceptionScore(24)
    score.update(outputs.logits, torch.arange(24))
    assert seen.score is not None
    assert abs(seen.score.compute().mean - score.compute().mean) < 1e-12
    assert seen.spatial is not None
    torch.testing.assert_close(seen.spatial.moments().mean, outputs.spatial.double().mean(0))
    assert statistics_in_parts(Small(), images[:9], 3, 0).score is None, "nine images make no ten splits"
