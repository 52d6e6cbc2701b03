"""The kernel distance between two sets of images, KID with Inception's features (Bińkowski et al. 2018)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergevq.errors import InputError

SUBSETS = 100
SUBSET_IMAGES = 1000
SEED = 2020  # torch-fidelity's, so that the subsets are its own


class KernelDistance(NamedTuple):
    """Mean and standard deviation over subsets; slightly below zero for sets that are very alike."""

    mean: float
    std: float
    subsets: int
    subset_images: int  # of each set


def kernel_distance(
    images: Tensor,
    reference: Tensor,
    *,
    subsets: int = SUBSETS,
    subset_images: int = SUBSET_IMAGES,
    seed: int = SEED,
) -> KernelDistance:
    """The squared maximum mean discrepancy of features (M, D) and (N, D): unbiased, kernel (x · y / D + 1)³, in float64.

    The mean over `subsets` draws of `subset_images` of each set, the draws of torch-fidelity's KID. Where a set is no
    larger than `subset_images`, subsets are as large as the smaller set; where both are, there is one, of all images.
    Raises `InputError` for features of different width, fewer than two images, and features that are not finite.
    """
    chosen = subset_plan(len(images), len(reference), subsets=subsets, subset_images=subset_images)
    found = subset_distances(images, reference, chosen, range(chosen.subsets), seed=seed)
    return summarised(found, chosen)


class SubsetPlan(NamedTuple):
    """How many subsets of how many images of each set."""

    subsets: int
    subset_images: int


def subset_plan(
    images: int, reference: int, *, subsets: int = SUBSETS, subset_images: int = SUBSET_IMAGES
) -> SubsetPlan:
    """The subsets of so many images and reference images; one of all where there are no others."""
    size = min(subset_images, images, reference)
    if size < 2:
        raise InputError(
            f"a kernel distance needs at least 2 images in each set, got {images} and {reference}"
        )
    return SubsetPlan(1 if size == images == reference else subsets, size)


def subset_distances(
    images: Tensor, reference: Tensor, plan: SubsetPlan, numbers: range, *, seed: int = SEED
) -> Tensor:
    """The distances (S,) float64 of the subsets with these `numbers`, on the CPU; any share of them gives the same."""
    if images.ndim != 2 or reference.ndim != 2 or images.shape[1] != reference.shape[1]:
        raise InputError(
            f"features {tuple(images.shape)} and {tuple(reference.shape)}: they must be (M, D) and (N, D) of one extractor"
        )
    for name, features in (("image", images), ("reference", reference)):
        if not features.isfinite().all():
            raise InputError(
                f"the {name} features hold NaN or infinity: look at the images and the extractor's weights"
            )
    random, found = np.random.RandomState(seed), []
    for number in range(numbers.stop):
        # One stream for all: what comes before has to be drawn.
        mine, theirs = (
            random.choice(len(features), plan.subset_images, replace=False)
            for features in (images, reference)
        )
        if number in numbers:
            found.append(_discrepancy(images[mine].double(), reference[theirs].double()).cpu())
    return torch.stack(found) if found else torch.empty(0, dtype=torch.float64)


def summarised(distances: Tensor, plan: SubsetPlan) -> KernelDistance:
    """Mean and deviation of the distances (S,) of all subsets."""
    return KernelDistance(float(distances.mean()), float(distances.std(correction=0)), *plan)


def _discrepancy(x: Tensor, y: Tensor) -> Tensor:
    count, own = len(x), x.new_zeros(())
    for features in (x, y):
        kernel = _kernel(features, features)
        own = own + (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))
    return own - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
