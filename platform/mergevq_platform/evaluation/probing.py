"""Probes and nearest neighbours of features, as jobs of workers; each is fitted once for the same features and labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from mergevq.metrics import Votes, knn_votes, linear_probe
from mergevq.metrics.probe import FittedProbe, fit_probe
from mergevq.metrics.sgd_probe import PUBLISHED, sgd_probe
from mergevq_platform.evaluation.passes import Passes

Fitted = TypeVar("Fitted")

KNN_QUERIES = 4096  # test features of one share of the nearest neighbours, up to
KNN_SHARES = 8  # shares, up to


class LabelledFeatures(NamedTuple):
    """Features of one kind, (B, D) float32, with labels (B,) int64: to learn from, and to be tested on."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arrays on a device."""
        train_x, train_y, test_x, test_y = (torch.from_numpy(array).to(device) for array in self)
        return train_x, train_y, test_x, test_y

    def digest(self) -> str:
        """Hex digest of all values."""
        digest = hashlib.sha256()
        for array in self:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class ProbeJob(NamedTuple):
    """A probe that learns on training features and is scored once on test features."""

    features: LabelledFeatures
    protocol: str = "exact"  # or one of `PUBLISHED`
    seed: int = 0  # of a published protocol's order and start

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, float]:
        """Top-1 (percent), its 95% interval `low` to `high`, and what was `chosen` without the test split: C, or the
        learning rate."""
        assert shares == 1
        tensors = self.features.tensors(device)
        if self.protocol != "exact":
            sgd = sgd_probe(*tensors, PUBLISHED[self.protocol], seed=self.seed)
            return _scored(sgd.top1, sgd.interval, sgd.learning_rate)
        probe = linear_probe(*tensors)
        return _scored(probe.top1, probe.interval, probe.C)


class VotesJob(NamedTuple):
    """Votes of nearest neighbours; a share is those of a share of the test and held-out features."""

    features: LabelledFeatures

    def on_rows(self, device: torch.device, number: int, shares: int) -> Votes:
        """The votes of one share."""
        return knn_votes(*self.features.tensors(device), share=(number, shares))


class FitProbeJob(NamedTuple):
    """A probe that is fitted to features (B, D) float32 with labels (B,), to be scored on any number of sets."""

    x: np.ndarray
    y: np.ndarray

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, Any]:
        """The fields of the `FittedProbe`, tensors as arrays."""
        assert shares == 1
        fitted = fit_probe(torch.from_numpy(self.x).to(device), torch.from_numpy(self.y).to(device))
        return {
            name: value.cpu().numpy() if isinstance(value, Tensor) else value
            for name, value in fitted._asdict().items()
        }


class ScoreProbeJob(NamedTuple):
    """A fitted probe's score on features (B, D) float32 with labels (B,)."""

    probe: dict[str, Any]
    x: np.ndarray
    y: np.ndarray

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, float]:
        """Top-1 (percent) and its 95% interval."""
        assert shares == 1
        fields: dict[str, Any] = {
            name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
            for name, value in self.probe.items()
        }
        found = FittedProbe(**fields).score(
            torch.from_numpy(self.x).to(device), torch.from_numpy(self.y).to(device)
        )
        return _scored(found.top1, found.interval, found.C)


@dataclass
class Probes:
    """The probes of an evaluation; what was fitted to the same features is not fitted again."""

    passes: Passes
    known: dict[tuple[object, ...], object] = field(default_factory=dict)

    def probe(
        self,
        key: Mapping[str, Any],
        features: LabelledFeatures,
        name: str,
        *,
        protocol: str = "exact",
        seed: int = 0,
    ) -> dict[str, float]:
        """Metrics of a probe, named after the features: top-1, interval, and what was chosen."""
        job = ProbeJob(features, protocol, seed)
        about = {"kind": "probes", "of": key, "protocol": [protocol, seed]}
        found = self._once((features.digest(), protocol, seed), lambda: self.passes.result(about, [job]))
        if protocol == "exact":
            top1, chosen = f"probe_top1_{name}", f"probe_C_{name}"
        else:
            top1, chosen = f"probe_{protocol}_top1_{name}", f"probe_{protocol}_rate_{name}"
        return {
            top1: found["top1"],
            f"{top1}_low": found["low"],
            f"{top1}_high": found["high"],
            chosen: found["chosen"],
        }

    def neighbours(self, key: Mapping[str, Any], features: LabelledFeatures, name: str) -> dict[str, float]:
        """Top-1 (percent) of nearest neighbours, their number, chosen without the test split, and top-1 of each number."""
        rows = math.ceil(
            len(features.test_y) / min(KNN_SHARES, math.ceil(len(features.test_y) / KNN_QUERIES))
        )
        votes = self._once(
            (features.digest(), "knn"),
            lambda: self.passes.in_shares(
                {"kind": "knn", "of": key}, VotesJob(features), len(features.test_y), rows_of_share=rows
            ),
        )
        knn = votes.result()
        return {
            f"knn_top1_{name}": knn.top1,
            f"knn_k_{name}": float(knn.k),
            **{f"knn_top1_{name}_k{k}": top1 for k, top1 in knn.by_k.items()},
        }

    def _once(self, name: tuple[object, ...], fit: Callable[[], Fitted]) -> Fitted:
        if name not in self.known:
            self.known[name] = fit()
        return cast(Fitted, self.known[name])  # the name says what was fitted


def _scored(top1: float, interval: tuple[float, float], chosen: float) -> dict[str, float]:
    return {"top1": top1, "low": interval[0], "high": interval[1], "chosen": chosen}
