"""The Fréchet distance between two sets of images, from streaming statistics of their features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import scipy.linalg
import torch
from scipy.linalg import blas
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator, added, float64

BUFFER = 2048  # images whose outer products are summed at once
BLOCK = 128  # columns of a matrix that are taken together
WELL_CONDITIONED = 1e-8  # least over greatest eigenvalue; below it roots of eigenvalues lose digits


class Moments(NamedTuple):
    """Mean and covariance of the features of an image set: the Gaussian that a Fréchet distance compares."""

    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64, unbiased
    images: int | None  # None: from a file that does not say


class FeatureStatistics(Accumulator):
    """Count, sum and sum of outer products of features, in float64: mean and covariance follow.

    In float32 the sums are off by 1e-5, and by 1e-3 where the mean is large. Memory is O(D²), whatever the count.
    """

    def __init__(self) -> None:
        self.count = 0
        self.buffer: Tensor | None = (
            None  # (BUFFER, D) features not yet in `outer`: large blocks add up faster
        )
        self.filled = 0  # rows of it
        self.sum: Tensor | None = None  # (D,)
        self.outer: Tensor | None = None  # (D, D), valid on and below the diagonal

    def update(self, features: Tensor) -> None:
        """Add features (B, D) of any float dtype. Raises `InputError` for another shape or another D than before."""
        if features.ndim != 2:
            raise InputError(f"features have shape {tuple(features.shape)}: give one row per image (B, D)")
        self._check_dim(features.shape[1])
        self.count += len(features)
        for part in features.detach().split(BUFFER):
            if self.filled + len(part) > BUFFER:
                self._flush()
            self._append(part)

    def merge(self, other: FeatureStatistics) -> Self:
        """The statistics of both sets, on the CPU. Raises `InputError` where the features differ in width."""
        merged, other = self.cpu_copy(), other.cpu_copy()
        if other.sum is not None:
            merged._check_dim(len(other.sum))
        merged.count += other.count
        merged.sum = added(merged.sum, other.sum)
        merged.outer = added(merged.outer, other.outer)
        return merged

    def moments(self) -> Moments:
        """The mean and the unbiased covariance, on the CPU.

        Raises `InputError` for fewer than two images, and for features that are not finite.
        """
        self._flush()
        if self.count < 2 or self.sum is None or self.outer is None:
            raise InputError(f"a Fréchet distance needs at least 2 images in each set, got {self.count}")
        mean, outer = self.sum.cpu() / self.count, self.outer.cpu()
        # A sum of squares is not finite where anything in its column is not.
        if not (mean.isfinite().all() and outer.diagonal().isfinite().all()):
            raise InputError(
                "the features hold NaN or infinity: look at the images and the extractor's weights"
            )
        return Moments(mean, _covariance(outer, mean, self.count), self.count)

    def __getstate__(self) -> dict[str, Any]:
        self._flush()
        return super().__getstate__() | {"buffer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Statistics in caches of before call the empty buffer so.
        super().__setstate__({"buffer": None, **{k: v for k, v in state.items() if k != "waiting"}})

    def _append(self, part: Tensor) -> None:
        # On the CPU by NumPy, in this thread: BLAS's threads still wait for more work when PyTorch's want their cores.
        if self.buffer is None or self.sum is None:
            device = float64(part[:0]).device
            self.buffer = _matrix(BUFFER, part.shape[1], device)
            self.sum = self.buffer.new_zeros(part.shape[1]) if self.sum is None else self.sum.to(device)
        rows = self.buffer[self.filled : self.filled + len(part)]
        if rows.device.type == part.device.type == "cpu":
            rows.numpy()[...] = part.float().numpy() if part.dtype == torch.bfloat16 else part.numpy()
            self.sum.numpy()[...] += rows.numpy().sum(0)
        else:
            rows.copy_(part)
            self.sum += rows.sum(0)
        self.filled += len(part)

    def _flush(self) -> None:
        if self.buffer is None or not self.filled:
            return
        x = self.buffer[: self.filled]
        self.filled = 0
        dim = x.shape[1]
        if self.outer is None:
            self.outer = _matrix(dim, dim, x.device).zero_()
        self.outer = self.outer.to(x.device)
        _add_outer(self.outer, x)

    def _check_dim(self, dim: int) -> None:
        known = None if self.sum is None else len(self.sum)
        if self.buffer is not None:
            known = self.buffer.shape[1]
        if known not in (None, dim):
            raise InputError(
                f"features of {dim} numbers do not go with features of {known}: use one extractor"
            )


def frechet_distance(a: FeatureStatistics | Moments, b: FeatureStatistics | Moments) -> float:
    """The squared Fréchet (2-Wasserstein) distance of the Gaussians with these moments, at least 0.

    |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½ (Dowson & Landau 1982; Heusel et al. 2017, eq. 6). The last trace is
    taken as the sum of the singular values of F1ᵀ F2 for factors S = F Fᵀ: symmetric in the sets, free of complex
    numbers, and without the square root of a rounding error that eigenvalues of S1 S2 have where S has no full rank.
    Where both are well conditioned they are roots of symmetric eigenvalues, which is faster.
    Raises `InputError` for sets of different width, fewer than two images, or features that are not finite; warns
    where a set has no more images than features, so that its covariance has no full rank.
    """
    a, b = (x.moments() if isinstance(x, FeatureStatistics) else x for x in (a, b))
    dim = len(a.mean)
    if dim != len(b.mean):
        raise InputError(
            f"features of {dim} and of {len(b.mean)} numbers have no distance: use one extractor for both sets"
        )
    fewest = min((x.images for x in (a, b) if x.images is not None), default=dim + 1)
    if fewest <= dim:
        warnings.warn(
            f"{fewest} images for {dim} features: the covariance has no full rank, and the Fréchet distance "
            "is strongly biased upwards; use more images",
            stacklevel=2,
        )
    apart = float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace())
    return max(0.0, apart - 2 * _overlap(a.covariance, b.covariance))


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


def _matrix(rows: int, columns: int, device: torch.device) -> Tensor:
    # Of float64, unset. NumPy asks the kernel for large pages, without which first touching 32 MB takes as long as reading it
    # several times; PyTorch does not.
    if device.type == "cpu":
        return torch.from_numpy(np.empty((rows, columns)))
    return torch.empty(rows, columns, dtype=torch.float64, device=device)


def _add_outer(outer: Tensor, x: Tensor) -> None:
    # outer += xᵀ x, on and below the diagonal only: the matrix is symmetric, and half of it is half the work.
    if x.device.type == "cpu":
        # BLAS counts columns first: its upper half of the transposed view is our lower half.
        blas.dsyrk(1.0, x.numpy().T, beta=1.0, c=outer.numpy().T, overwrite_c=True)
        return
    for start in range(0, x.shape[1], BLOCK):
        stop = start + BLOCK
        outer[start:stop, :stop].addmm_(x[:, start:stop].T, x[:, :stop])


def _covariance(outer: Tensor, mean: Tensor, count: int) -> Tensor:
    # (outer - count mean meanᵀ) / (count - 1), of what is on and below the diagonal. In square blocks: a transpose of
    # everything at once would go through memory column by column.
    sums, m = outer.numpy(), mean.numpy()
    covariance = np.empty_like(sums)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(sums), BLOCK)]
    for i, rows in enumerate(blocks):
        for columns in blocks[: i + 1]:
            block = m[rows, None] * m[None, columns]
            block *= -count
            block += sums[rows, columns]
            block /= count - 1
            if columns == rows:
                block = np.tril(block) + np.tril(block, -1).T
            covariance[rows, columns], covariance[columns, rows] = block, block.T
    return torch.from_numpy(covariance)


def _overlap(a: Tensor, b: Tensor) -> float:
    # The trace of (S1 S2)^½.
    (factor_a, condition_a), (factor_b, condition_b) = _factor(a), _factor(b)
    product = factor_a.T @ factor_b
    if min(condition_a, condition_b) < WELL_CONDITIONED:
        return float(torch.linalg.svdvals(product).sum())
    squares = blas.dsyrk(
        1.0, product.numpy().T
    )  # productᵀ product; SciPy's eigenvalues are faster than PyTorch's
    values = scipy.linalg.eigvalsh(squares, lower=False, overwrite_a=True, check_finite=False)
    return float(np.sqrt(values.clip(min=0)).sum())


def _factor(covariance: Tensor) -> tuple[Tensor, float]:
    # F (D, rank) with S = F Fᵀ, and about the smallest of S's eigenvalues over its largest.
    # Cholesky is several times faster, but fails, or loses digits, without full rank (fewer images than features).
    factor, failed = torch.linalg.cholesky_ex(covariance)
    condition = float(factor.diagonal().square().amin() / covariance.diagonal().amax())
    if not failed and condition > 1e-10:
        return factor, condition
    values, vectors = torch.linalg.eigh(covariance)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return vectors[:, values > noise] * values[values > noise].sqrt(), 0.0
