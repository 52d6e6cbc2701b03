"""Manifolds of features: precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mergevq.errors import InputError

K = 3
DENSITY_K = 5  # of density and coverage
CHUNK = 4096


class PrecisionRecall(NamedTuple):
    """Precision and recall, fractions in [0, 1], with the numbers of images."""

    precision: float  # generated images that lie on the manifold of the reference
    recall: float  # reference images that lie on the manifold of the generated ones
    images: int
    reference_images: int
    k: int


def precision_recall(
    generated: Tensor, reference: Tensor, *, k: int = K, chunk: int = CHUNK
) -> PrecisionRecall:
    """Precision and recall of features (M, D) against (N, D): balls to the k-th nearest neighbour stand for a manifold.

    Works on the features' device, `chunk` x `chunk` distances at a time, which changes memory only. Raises
    `InputError` for features that are not finite, of different width, or too few to have k neighbours. Many workers
    share the work through `radii` and `covered`, whose rows are independent.
    """
    generated, reference = checked_features(generated, reference, k)
    on_reference = covered(generated, reference, radii(reference, reference, k=k, chunk=chunk), chunk=chunk)
    on_generated = covered(reference, generated, radii(generated, generated, k=k, chunk=chunk), chunk=chunk)
    return PrecisionRecall(
        float(on_reference.double().mean()),
        float(on_generated.double().mean()),
        len(generated),
        len(reference),
        k,
    )


class DensityCoverage(NamedTuple):
    """Density, at least 0 and 1 for the reference's own, and coverage, in [0, 1], with the numbers of images."""

    density: float  # balls of reference images that a generated image lies in, as a multiple of k
    coverage: float  # reference images whose ball holds a generated image
    images: int
    reference_images: int
    k: int


def density_coverage(
    generated: Tensor, reference: Tensor, *, k: int = DENSITY_K, chunk: int = CHUNK
) -> DensityCoverage:
    """Density and coverage of features (M, D) against (N, D): balls of reference images to their k-th nearest other one.

    Density counts how many balls hold each generated image, so that one outlier's large ball weighs little; coverage asks
    which balls hold any. Memory and errors as for `precision_recall`; equations 3 and 4 of Naeem et al. 2020.
    """
    generated, reference = checked_features(generated, reference, k)
    held = members(reference, generated, radii(reference, reference, k=k, chunk=chunk), chunk=chunk)
    return DensityCoverage(
        float(held.double().sum()) / (k * len(generated)),
        float((held > 0).double().mean()),
        len(generated),
        len(reference),
        k,
    )


def checked_features(generated: Tensor, reference: Tensor, k: int = K) -> tuple[Tensor, Tensor]:
    """Both sets in float32, moved so that the reference's mean is the origin, where products cost the fewest digits."""
    require_comparable(generated, reference, k)
    origin = centre(reference)
    return centred(generated, origin), centred(reference, origin)


def require_comparable(generated: Tensor, reference: Tensor, k: int = K) -> None:
    """Raise `InputError` for features that are not finite, of different width, or too few to have k neighbours."""
    if generated.ndim != 2 or reference.ndim != 2 or generated.shape[1] != reference.shape[1]:
        raise InputError(
            f"features {tuple(generated.shape)} and {tuple(reference.shape)}: they must be (M, D) and (N, D) of one extractor"
        )
    for name, features in (("generated", generated), ("reference", reference)):
        if len(features) <= k:
            raise InputError(f"{len(features)} {name} images do not have {k} neighbours: use more")
        if not features.isfinite().all():
            raise InputError(
                f"the {name} features hold NaN or infinity: look at the images and the extractor's weights"
            )


def centre(features: Tensor) -> Tensor:
    """The mean (D,) of features (N, D), in float64."""
    return features.double().mean(0)


def centred(features: Tensor, origin: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Features (N, D) less the origin (D,) float64, in float32; `chunk` rows at a time are in float64."""
    return torch.cat([(part.double() - origin).float() for part in features.split(chunk)])


def radii(rows: Tensor, bank: Tensor, *, k: int = K, chunk: int = CHUNK) -> Tensor:
    """The squared distance (B,) of each row (B, D), a member of the bank (N, D), to its k-th nearest other member."""
    found = []
    for part in rows.split(chunk):
        nearest = part.new_full((len(part), k + 1), torch.inf)  # with itself
        for other in bank.split(chunk):
            distances = squared_distances(part, other)
            few = distances.topk(min(k + 1, len(other)), largest=False).values
            nearest = torch.cat([nearest, few], 1).topk(k + 1, largest=False).values
        found.append(nearest.amax(1))
    return torch.cat(found)


def covered(rows: Tensor, bank: Tensor, bank_radii: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Whether each row (B, D) lies in the ball of any member of the bank (N, D): (B,) bool."""
    found = []
    for part in rows.split(chunk):
        inside = torch.zeros(len(part), dtype=torch.bool, device=part.device)
        for other, radius in zip(bank.split(chunk), bank_radii.split(chunk), strict=True):
            inside |= (squared_distances(part, other) <= radius).any(1)
        found.append(inside)
    return torch.cat(found)


def members(rows: Tensor, bank: Tensor, rows_radii: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """How many of the bank (N, D) lie within the ball of each row (B, D), whose squared radii are (B,): (B,) int64."""
    found = []
    for part, radius in zip(rows.split(chunk), rows_radii.split(chunk), strict=True):
        held = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        for other in bank.split(chunk):
            held += (squared_distances(part, other) < radius[:, None]).sum(1)
        found.append(held)
    return torch.cat(found)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|² (M, N) of features (M, D) and (N, D) float32, by one product."""
    return torch.addmm(b.square().sum(1).expand(len(a), -1), a, b.T, alpha=-2).add_(
        a.square().sum(1, keepdim=True)
    )
