"""The Fréchet distance between two sets of pictures, from streaming statistics of their features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator, added, float64


class FeatureStatistics(Accumulator):
    """The count, sum and sum of outer products of features, in float64: what mean and covariance need.

    In float32 the sums are off by 1e-5, and by 1e-3 where the mean is large.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | None = None  # (D,)
        self.outer: Tensor | None = None  # (D, D)

    def update(self, features: Tensor) -> None:
        """Add features (B, D) of any float dtype. Raises `InputError` for another shape or another D than before."""
        if features.ndim != 2:
            raise InputError(f"features have shape {tuple(features.shape)}: give one row per picture (B, D)")
        self._check_dim(features.shape[1])
        features = float64(features)
        self.count += len(features)
        self.sum = added(self.sum, features.sum(0))
        self.outer = added(self.outer, features.T @ features)

    def merge(self, other: FeatureStatistics) -> Self:
        """The statistics of both sets, on the CPU. Raises `InputError` where the features differ in width."""
        merged, other = self.at_rest(), other.at_rest()
        if other.sum is not None:
            merged._check_dim(len(other.sum))
        merged.count += other.count
        merged.sum = added(merged.sum, other.sum)
        merged.outer = added(merged.outer, other.outer)
        return merged

    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean (D,) and the unbiased covariance (D, D), float64 on the CPU.

        Raises `InputError` for fewer than two pictures, and for features that are not finite.
        """
        if self.count < 2 or self.sum is None or self.outer is None:
            raise InputError(f"a Fréchet distance needs at least 2 pictures in each set, got {self.count}")
        mean, outer = self.sum.cpu() / self.count, self.outer.cpu()
        if not (mean.isfinite().all() and outer.isfinite().all()):
            raise InputError(
                "the features hold NaN or infinity: look at the pictures and the extractor's weights"
            )
        covariance = (outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean, (covariance + covariance.T) / 2

    def _check_dim(self, dim: int) -> None:
        if self.sum is not None and len(self.sum) != dim:
            raise InputError(
                f"features of {dim} numbers do not go with features of {len(self.sum)}: use one extractor"
            )


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared Fréchet (2-Wasserstein) distance of the Gaussians with these moments, at least 0.

    |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½ (Dowson & Landau 1982; Heusel et al. 2017, eq. 6). The last trace is
    taken as the sum of the singular values of F1ᵀ F2 for factors S = F Fᵀ: symmetric in the sets, free of complex
    numbers, and without the square root of a rounding error that eigenvalues of S1 S2 have where S has no full rank.
    Raises `InputError` for sets of different width, fewer than two pictures, or features that are not finite; warns
    where a set has no more pictures than features, so that its covariance has no full rank.
    """
    mean_a, covariance_a = a.moments()
    mean_b, covariance_b = b.moments()
    if len(mean_a) != len(mean_b):
        raise InputError(
            f"features of {len(mean_a)} and of {len(mean_b)} numbers have no distance: use one extractor for both sets"
        )
    fewest = min(a.count, b.count)
    if fewest <= len(mean_a):
        warnings.warn(
            f"{fewest} pictures for {len(mean_a)} features: the covariance has no full rank, and the Fréchet distance "
            "is strongly biased upwards; use more pictures",
            stacklevel=2,
        )
    overlap = torch.linalg.svdvals(_factor(covariance_a).T @ _factor(covariance_b)).sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return max(0.0, float(distance))


def require_same_identity(protocol_a: Mapping[str, Any], protocol_b: Mapping[str, Any]) -> None:
    """Refuse to compare Fréchet distances that are not on one scale.

    A protocol names its `extractor` (name and identity) and its number of `images`; the distance depends on both
    (its bias falls with the number). Raises `InputError` naming what differs or is missing.
    """
    a, b = _identity(protocol_a), _identity(protocol_b)
    for key in [*a, *(key for key in b if key not in a)]:
        if a.get(key) != b.get(key):
            raise InputError(
                f"Fréchet distances cannot be compared: {key} is {a.get(key)!r} in one and {b.get(key)!r} in the other; "
                "evaluate both the same way"
            )


def _identity(protocol: Mapping[str, Any]) -> dict[str, Any]:
    extractor, images = protocol.get("extractor"), protocol.get("images")
    if not isinstance(extractor, Mapping) or images is None:
        raise InputError(
            "a Fréchet distance without its extractor and its number of images cannot be compared: evaluate it again"
        )
    return {f"extractor.{key}": value for key, value in extractor.items()} | {"images": images}


def _factor(covariance: Tensor) -> Tensor:
    # Cholesky is several times faster, but fails, or loses digits, without full rank (fewer pictures than features).
    factor, failed = torch.linalg.cholesky_ex(covariance)
    diagonal = factor.diagonal()
    if not failed and bool((diagonal.square() > 1e-10 * covariance.diagonal().amax()).all()):
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return vectors * torch.where(values > noise, values, 0).sqrt()
