"""Precision and recall of two sets of features, in blocks of rows on workers (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergevq.metrics.manifold import CHUNK, K, centre, centred, covered, radii, require_comparable
from mergevq_platform.evaluation.passes import Passes

Key = Mapping[str, Any]


class CentreJob(NamedTuple):
    """The mean of features (N, D) float32."""

    features: np.ndarray

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, np.ndarray]:
        """`centre` (D,) float64."""
        assert shares == 1
        return {"centre": centre(tensor(self.features, device)).cpu().numpy()}


class RadiiJob(NamedTuple):
    """The squared distance of features (N, D) float32 to their k-th nearest other member."""

    features: np.ndarray
    centre: np.ndarray
    k: int = K

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, np.ndarray]:
        """`radii` (b,) of a block of `CHUNK` rows."""
        bank = centred(tensor(self.features, device), torch.from_numpy(self.centre).to(device))
        return {"radii": radii(block(bank, number, shares), bank, k=self.k).cpu().numpy()}


class CoveredJob(NamedTuple):
    """The features (M, D) float32 that lie in the ball of any member of the bank (N, D), whose squared radii are (N,)."""

    features: np.ndarray
    bank: np.ndarray
    radii: np.ndarray
    centre: np.ndarray

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, np.ndarray]:
        """`covered` (b,) bool of a block of `CHUNK` rows."""
        origin = torch.from_numpy(self.centre).to(device)
        rows = centred(block(tensor(self.features, device), number, shares), origin)
        bank = centred(tensor(self.bank, device), origin)
        return {"covered": covered(rows, bank, tensor(self.radii, device)).cpu().numpy()}


def precision_recall(
    passes: Passes, images: np.ndarray, images_key: Key, reference: np.ndarray, reference_key: Key
) -> dict[str, float]:
    """`precision` and `recall` of features (M, D) against (N, D) float32, as `mergevq.metrics.precision_recall` gives them.

    Blocks of `CHUNK` x `CHUNK` distances are taken at once. The keys name the passes that the features are of. Raises
    `InputError` as the library's does.
    """
    require_comparable(tensor(images), tensor(reference))
    about = {"centre_of": reference_key, "k": K}
    origin = feature_origin(passes, reference, reference_key)

    def share_covered(features: np.ndarray, key: Key, bank: np.ndarray, bank_key: Key) -> float:
        job = CoveredJob(features, bank, radii_of(passes, bank, bank_key, origin, reference_key), origin)
        found = passes.in_shares(
            {"kind": "covered", "of": key, "by": bank_key, **about}, job, len(features), rows_of_share=CHUNK
        )
        return float(found["covered"].mean())

    return {
        "precision": share_covered(images, images_key, reference, reference_key),
        "recall": share_covered(reference, reference_key, images, images_key),
    }


def feature_origin(passes: Passes, reference: np.ndarray, reference_key: Key) -> np.ndarray:
    """The mean (D,) float64 of the reference's features, from which all are counted."""
    return passes.small_result({"kind": "centre", "of": reference_key}, [CentreJob(reference)])["centre"]


def radii_of(
    passes: Passes, features: np.ndarray, key: Key, origin: np.ndarray, reference_key: Key, *, k: int = K
) -> np.ndarray:
    """The squared distances (N,) of features (N, D) to their k-th nearest other member."""
    about = {"centre_of": reference_key, "k": k}
    job = RadiiJob(features, origin, k)
    found = passes.in_shares({"kind": "radii", "of": key, **about}, job, len(features), rows_of_share=CHUNK)
    return found["radii"]


def tensor(array: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """The array on a device."""
    return torch.from_numpy(array).to(device)


def block(rows: Tensor, number: int, shares: int) -> Tensor:
    """Block `number` of `shares` of `CHUNK` rows each."""
    # Whole chunks, so that a block's distances are those of the undivided work to the last bit.
    start = number * CHUNK
    return rows[start:] if number == shares - 1 else rows[start : start + CHUNK]
