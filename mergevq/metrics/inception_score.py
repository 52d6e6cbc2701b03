"""The Inception score (Salimans et al. 2016)."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator, added, float64

Order = Literal["shuffled", "sequential"]


class InceptionScoreResult(NamedTuple):
    """The score over splits as papers give it, and over all images at once, which depends on no order."""

    mean: float  # over the splits
    std: float  # over the splits, population
    unsplit: float
    images: int
    splits: int


class InceptionScore(Accumulator):
    """exp(E KL(p(y|x) ‖ p(y))) of logits (Salimans et al. 2016), in float64, per split.

    The number of images is given beforehand, because it decides which split an image is in. `shuffled` deals the
    images out as torch-fidelity does by default (NumPy's RandomState, seed 2020); `sequential` cuts them in their
    order, as the ADM suite.
    """

    def __init__(self, images: int, *, splits: int = 10, order: Order = "shuffled", seed: int = 2020) -> None:
        if not 1 <= splits <= images:
            raise InputError(
                f"{images} images cannot be scored in {splits} splits: use more images or fewer splits"
            )
        self.images, self.splits = images, splits
        self.order, self.seed = order, seed
        self.count = torch.zeros(splits, dtype=torch.int64)
        self.sums: Tensor | None = None  # (splits, classes): of the probabilities
        self.negentropy: Tensor | None = None  # (splits,): of Σ p log p

    def update(self, logits: Tensor, positions: Tensor) -> None:
        """Add logits (B, classes) of the images at `positions` (B,) in the whole set, integers from 0.

        Raises `InputError` for positions outside the set.
        """
        if logits.ndim != 2 or positions.shape != logits.shape[:1]:
            raise InputError(
                f"logits {tuple(logits.shape)} and positions {tuple(positions.shape)}: they must be (B, classes) and (B,)"
            )
        positions = positions.cpu()
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < self.images:
            raise InputError(f"an image's position is outside the {self.images} images that the score is of")
        log_p = float64(logits).log_softmax(1)
        split = self._split_of(positions)
        self.count = self.count + torch.bincount(split, minlength=self.splits)
        split = split.to(log_p.device)
        p = log_p.exp()
        sums = p.new_zeros(self.splits, p.shape[1]).index_add_(0, split, p)
        self.sums = added(self.sums, sums)
        information = p.new_zeros(self.splits).index_add_(0, split, (p * log_p).sum(1))
        self.negentropy = added(self.negentropy, information)

    def merge(self, other: InceptionScore) -> Self:
        """The score over both sets of images, on the CPU. Raises `InputError` where the wholes differ."""
        mine, theirs = ((x.images, x.splits, x.order, x.seed) for x in (self, other))
        if mine != theirs:
            raise InputError(
                f"Inception scores of {mine} and {theirs} (images, splits, order, seed) do not merge"
            )
        merged, other = self.cpu_copy(), other.cpu_copy()
        merged.count = merged.count + other.count
        merged.sums = added(merged.sums, other.sums)
        merged.negentropy = added(merged.negentropy, other.negentropy)
        return merged

    def compute(self) -> InceptionScoreResult:
        """The scores. Raises `InputError` before every image was seen, and for logits that are not finite."""
        seen = int(self.count.sum())
        if seen != self.images or self.sums is None or self.negentropy is None:
            raise InputError(f"the Inception score was to be of {self.images} images but saw {seen}")
        if not self.sums.isfinite().all():
            raise InputError(
                "the logits hold NaN or infinity: look at the images and the extractor's weights"
            )
        sums, negentropy, count = self.sums.cpu(), self.negentropy.cpu(), self.count.double()
        scores = _score(sums, negentropy, count)
        unsplit = float(_score(sums.sum(0, keepdim=True), negentropy.sum(0, keepdim=True), count.sum()))
        return InceptionScoreResult(
            float(scores.mean()), float(scores.std(correction=0)), unsplit, self.images, self.splits
        )

    def _split_of(self, positions: Tensor) -> Tensor:
        # Split i holds places i N // S up to (i + 1) N // S of the order.
        edges = torch.tensor(
            [i * self.images // self.splits for i in range(1, self.splits)], dtype=torch.int64
        )
        places = positions if self.order == "sequential" else _dealt(self.images, self.seed)[positions]
        return torch.searchsorted(edges, places, right=True)


@lru_cache(maxsize=4)
def _dealt(images: int, seed: int) -> Tensor:
    return torch.from_numpy(np.argsort(np.random.RandomState(seed).permutation(images)))


def _score(sums: Tensor, negentropy: Tensor, count: Tensor) -> Tensor:
    mean = sums / count.reshape(-1, 1)
    # E Σ p log p - Σ q log q, the mean of KL(p ‖ q) where q is the mean of p.
    return (negentropy / count - torch.xlogy(mean, mean).sum(1)).exp()
