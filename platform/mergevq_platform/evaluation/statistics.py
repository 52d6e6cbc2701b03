"""Feature statistics of an image set for FID, sFID, Inception score, precision and recall; they merge over parts of the set."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from mergevq.metrics import FeatureStatistics, InceptionExtractor, InceptionScore
from mergevq.metrics.features import Extractor
from mergevq_platform.evaluation.results import Mergeable

SPLITS = 10  # of the Inception score


@dataclass
class ImageSetStatistics(Mergeable):
    """Accumulators and features of a set of images, or of a part of it."""

    pool: FeatureStatistics = field(default_factory=FeatureStatistics)
    spatial: FeatureStatistics | None = None  # of inner maps, as sFID takes; the Inception's alone
    score: InceptionScore | None = None
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (B, D), of the first


def image_set_statistics(
    network: Extractor, images: Tensor, positions: Tensor, of: int, *, features: int
) -> ImageSetStatistics:
    """Statistics of images (B, 3, H, W) in [-1, 1] at `positions` (B,) of a set of `of` images.

    The features of the first `features` images of the set are kept.
    """
    statistics = ImageSetStatistics()
    if isinstance(network, InceptionExtractor):
        found = network.outputs(images)
        pool, statistics.spatial = found.pool, FeatureStatistics()
        statistics.spatial.update(found.spatial)
        if of >= SPLITS:
            statistics.score = InceptionScore(of, splits=SPLITS)
            statistics.score.update(found.logits, positions)
    else:
        pool = network(images)
    statistics.pool.update(pool)
    statistics.features = pool[positions.to(pool.device) < features].cpu().numpy()
    return statistics
