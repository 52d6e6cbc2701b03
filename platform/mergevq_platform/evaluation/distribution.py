"""Kernel distance (KID), density and coverage of two sets of features, in shares on workers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from mergevq.metrics.kernel import SEED, SubsetPlan, subset_distances, subset_plan, summarised
from mergevq.metrics.manifold import CHUNK, DENSITY_K, centred, members, require_comparable
from mergevq_platform.evaluation.manifold import Key, block, feature_origin, radii_of, tensor
from mergevq_platform.evaluation.passes import Passes

SUBSETS_PER_SHARE = 10
SCORES = ("kid", "density", "coverage")


class KernelJob(NamedTuple):
    """Kernel distances of subsets of features (M, D) and (N, D) float32."""

    features: np.ndarray
    reference: np.ndarray
    plan: SubsetPlan

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, np.ndarray]:
        """`distances` (s,) float64 of this share of the subsets."""
        first = number * SUBSETS_PER_SHARE
        numbers = range(first, min(first + SUBSETS_PER_SHARE, self.plan.subsets))
        mine, theirs = tensor(self.features, device), tensor(self.reference, device)
        return {"distances": subset_distances(mine, theirs, self.plan, numbers).numpy()}


class MembersJob(NamedTuple):
    """How many of the features (M, D) lie within the ball of each row of the bank (N, D), whose squared radii are (N,)."""

    features: np.ndarray
    bank: np.ndarray
    radii: np.ndarray
    centre: np.ndarray

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, np.ndarray]:
        """`members` (b,) int64 of a block of `CHUNK` rows of the bank."""
        origin = torch.from_numpy(self.centre).to(device)
        rows = centred(block(tensor(self.bank, device), number, shares), origin)
        radii = block(tensor(self.radii, device), number, shares)
        return {"members": members(rows, centred(tensor(self.features, device), origin), radii).cpu().numpy()}


def distribution_scores(
    passes: Passes, images: np.ndarray, images_key: Key, reference: np.ndarray, reference_key: Key
) -> dict[str, float]:
    """`kid`, of several subsets `kid_std`, `density` and `coverage` of features (M, D) against (N, D) float32, as the library gives them.

    The keys name the passes that the features are of. Raises `InputError` as `mergevq.metrics.density_coverage` does.
    """
    require_comparable(tensor(images), tensor(reference), DENSITY_K)
    plan = subset_plan(len(images), len(reference))
    about: dict[str, Any] = {"of": images_key, "by": reference_key}
    drawn = passes.in_shares(
        {"kind": "kernel", "seed": SEED, **plan._asdict(), **about},
        KernelJob(images, reference, plan),
        plan.subsets,
        rows_of_share=SUBSETS_PER_SHARE,
    )
    kernel = summarised(torch.from_numpy(drawn["distances"]), plan)
    origin = feature_origin(passes, reference, reference_key)
    balls = radii_of(passes, reference, reference_key, origin, reference_key, k=DENSITY_K)
    held = passes.in_shares(
        {"kind": "members", "k": DENSITY_K, **about},
        MembersJob(images, reference, balls, origin),
        len(reference),
        rows_of_share=CHUNK,
    )["members"]
    spread = {"kid_std": kernel.std} if plan.subsets > 1 else {}  # one subset deviates from no other
    return {
        "kid": kernel.mean,
        **spread,
        "density": float(held.sum()) / (DENSITY_K * len(images)),
        "coverage": float((held > 0).mean()),
    }


def distribution_protocol(images: int, reference: int) -> dict[str, Any]:
    """The protocol of these scores of sets of so many features."""
    plan = subset_plan(images, reference)
    return {
        "kid": f"polynomial kernel of degree 3, unbiased, mean over {plan.subsets} subset{'s' * (plan.subsets > 1)} of "
        f"{plan.subset_images:,} images, as torch-fidelity draws them (seed {SEED})",
        "density_coverage": f"{DENSITY_K} nearest neighbours of reference images",
        "images": images,
        "reference_images": reference,
    }
