"""The results of a generator's passes, and the findings that figures show."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mergevq_platform.evaluation.results import Mergeable
from mergevq_platform.evaluation.statistics import ImageSetStatistics

SHOWN = 48  # images of each set that the figures may show


@dataclass
class GeneratorResult(Mergeable):
    """Statistics of a set of images."""

    statistics: ImageSetStatistics | None  # by the extractor; none of training images
    summary: np.ndarray  # (B, D) float32, the tokenizer's summary with all tokens kept
    labels: np.ndarray  # (B,) int64: their class, or the one asked for
    small: np.ndarray  # (B, …) uint8: see `thumbnails`
    first: np.ndarray  # (at most SHOWN, H, W, 3) uint8: the first of the set, to be looked at
    tokens: int = 0
    seconds: float = 0.0  # of making codes and images


@dataclass
class ShownImages:
    """The first images of a set."""

    images: np.ndarray  # (B, H, W, 3) uint8
    labels: np.ndarray  # (B,) int64
    small: np.ndarray  # (B, …) uint8: see `neighbours.thumbnails`

    @classmethod
    def of(cls, result: GeneratorResult) -> ShownImages:
        """The first images of a result, copied so that the result can be freed."""
        count = len(result.first)
        return cls(result.first, result.labels[:count].copy(), result.small[:count].copy())


@dataclass
class GeneratorFindings:
    """Images and codes that figures show beside the report."""

    shown: dict[str, ShownImages] = field(default_factory=dict)  # by scale, or by what they are
    # Of the first images at the best scale: distances (B, k) in grey levels, and numbers (B, k): see `neighbours.nearest`.
    neighbours: tuple[np.ndarray, np.ndarray] | None = None
    train_images: int = 0
