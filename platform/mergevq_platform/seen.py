"""What a network of features sees in a set of pictures, and how alike two sets are by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any, Self, TypeVar

import numpy as np
from torch import Tensor

from mergevq.metrics import FeatureStatistics, InceptionExtractor, InceptionScore
from mergevq.metrics.features import Extractor

SPLITS = 10  # of the Inception score
AnyParts = TypeVar("AnyParts", bound="Parts")


class Parts:
    """A dataclass of accumulators and arrays (B, …), which merge field by field; None is of nothing."""

    def merge(self, other: Self) -> Self:
        """Of both sets of pictures, these first."""
        return together([self, other])


def together(parts: Sequence[AnyParts]) -> AnyParts:
    """All sets of pictures in order: their arrays are copied once, however many they are."""
    merged: dict[str, Any] = {}
    for name in (part.name for part in fields(parts[0])):  # type: ignore[arg-type]
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        if values and isinstance(values[0], np.ndarray):
            merged[name] = np.concatenate(values)
        else:
            merged[name] = reduce(lambda mine, theirs: mine.merge(theirs), values) if values else None
    return type(parts[0])(**merged)


@dataclass
class Seen(Parts):
    """Of a set of pictures: what Fréchet distances, Inception score, precision and recall need."""

    pool: FeatureStatistics = field(default_factory=FeatureStatistics)
    spatial: FeatureStatistics | None = None  # of inner maps, as sFID takes; the Inception's alone
    score: InceptionScore | None = None
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (B, D), of the first


def see(network: Extractor, images: Tensor, places: Tensor, of: int, *, features: int) -> Seen:
    """What `network` sees in pictures (B, 3, H, W) in [-1, 1], at `places` (B,) among `of` that are judged together.

    Of the first so many of all, `features` are kept.
    """
    seen = Seen()
    if isinstance(network, InceptionExtractor):
        found = network.outputs(images)
        pool, seen.spatial = found.pool, FeatureStatistics()
        seen.spatial.update(found.spatial)
        if of >= SPLITS:
            seen.score = InceptionScore(of, splits=SPLITS)
            seen.score.update(found.logits, places)
    else:
        pool = network(images)
    seen.pool.update(pool)
    seen.features = pool[places.to(pool.device) < features].cpu().numpy()
    return seen
