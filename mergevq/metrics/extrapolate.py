"""The Fréchet distance extrapolated to infinitely many images (Chong & Forsyth 2020)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.frechet import FeatureStatistics, Moments, frechet_distance
from mergevq.rng import seeded_permutation


class Extrapolated(NamedTuple):
    """A line fitted to distances over 1 / N, N the number of images."""

    distance: float  # where the line meets 1 / N = 0; may be below zero, which is noise
    slope: float
    r_squared: float  # of the fit; far from 1 the extrapolation means little
    counts: tuple[int, ...]  # N of each point
    distances: tuple[float, ...]
    images: int  # of which the subsets were drawn
    seed: int


def extrapolated_distance(
    features: Tensor,
    reference: FeatureStatistics | Moments,
    *,
    fewest: int | None = None,
    points: int = 15,
    seed: int = 0,
) -> Extrapolated:
    """The distance of features (N, D) from the reference, extrapolated to infinitely many images.

    The bias of a Fréchet distance falls as 1 / N (Chong & Forsyth 2020, section 4): distances of `points` random
    subsets of `fewest` (there 5,000; here a tenth of all by default) up to all images, drawn by (seed, size), are
    fitted by least squares. The reference stays whole, and its own bias with it. Raises `InputError` for fewer than
    two points or subsets of less than two images.
    """
    images = len(features)
    fewest = max(2, images // 10) if fewest is None else fewest
    if points < 2 or not 2 <= fewest < images:
        raise InputError(
            f"{points} subsets of {fewest} to {images} images show no trend: use two points or more, and more images"
        )
    counts = [int(count) for count in np.linspace(fewest, images, points).astype(int)]
    target = reference.moments() if isinstance(reference, FeatureStatistics) else reference
    distances = []
    for count in counts:
        chosen = seeded_permutation(images, seed, count)[:count]
        statistics = FeatureStatistics()
        statistics.update(features[torch.from_numpy(np.sort(chosen)).to(features.device)])
        distances.append(frechet_distance(statistics, target))
    x, y = 1 / np.array(counts), np.array(distances)
    slope, intercept = np.polyfit(x, y, 1)
    unexplained = ((y - intercept - slope * x) ** 2).sum()
    spread = ((y - y.mean()) ** 2).sum()
    return Extrapolated(
        float(intercept),
        float(slope),
        float(1 - unexplained / spread) if spread else 1.0,
        tuple(counts),
        tuple(distances),
        images,
        seed,
    )
