"""The cells of `front_stopping.py`: a trial of a sweep, trained to its end and measured at every rung."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergevq.config import merged
from mergevq.keep import (
    ExponentialKeepConfig,
    GaussianKeepConfig,
    KeepDistributionConfig,
    ListedKeepConfig,
    UniformKeepConfig,
)
from mergevq.metrics import Extractor, FeatureStatistics, Psnr, extractor, frechet_distance, knn_votes
from mergevq.metrics.features import RandomFeaturesConfig
from mergevq.rng import generator_at
from mergevq.tokenizer import MergeVQ
from mergevq_platform.procedural.shape_distances import CLASSES
from mergevq_platform.procedural.shapes import render
from small_tokenizer import LEARNING_RATE, MODEL, device, train_tokenizer, unit

PASS = 500  # images at once, in measurements
SIZE = 32
KEEPS = (9, 36)  # at which rungs measure
CLASSIFIED_AT = 36  # the kept count of the summary tokens that neighbours classify
DEMO_KEEP = ListedKeepConfig(counts=(9, 16, 25, 36, 49, 64, 64, 64))
RANGE = (0.0, 0.86)  # merge ratios: 64 to 9 of 64 tokens


@dataclass(frozen=True, kw_only=True)
class TrialProtocol:
    """All that decides the numbers of a trial beside its choice."""

    train_images: int = 4000
    val_images: int = 500
    neighbours_of: int = 1000  # training images whose summary tokens vote
    steps: int = 128
    rungs: int = 8
    batch: int = 48


@dataclass(frozen=True, kw_only=True)
class TrialChoice:
    """What a trial of a sweep changes of the demo's recipe."""

    keep: KeepDistributionConfig = DEMO_KEEP
    losses: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = LEARNING_RATE


LABELS = {"kind": "supervised", "classes": len(CLASSES)}
ALIGNED = {"alignment": {**LABELS, "weight": 0.5}}


def _keep_distributions() -> list[TrialChoice]:
    """Which kept counts: exponential and Gaussian distributions, uniform ones and lists."""
    keeps: list[KeepDistributionConfig] = [
        ExponentialKeepConfig(merge_ratio=RANGE, rate=rate) for rate in (0.2, 0.5, 1.0, 2.0)
    ]
    keeps += [
        GaussianKeepConfig(merge_ratio=RANGE, peak_merge_ratio=peak, sigma=sigma)
        for peak, sigma in product((0.0, 0.44, 0.75), (0.5, 1.5))
    ]
    keeps += [UniformKeepConfig(merge_ratio=RANGE, square=square) for square in (True, False)]
    lists = ((0.0,), (0.86,), (0.75, 0.44, 0.0), (0.86, 0.86, 0.6, 0.0))
    keeps += [ListedKeepConfig(merge_ratios=ratios) for ratios in lists]
    return [TrialChoice(keep=keep, losses=ALIGNED) for keep in keeps]


def _loss_weights() -> list[TrialChoice]:
    """How strong each loss term and how large a step: random draws, even in the logarithm."""
    found = []
    for number in range(16):
        drawn = generator_at(0, number).random(4)
        entropy, commitment, alignment, rate = (
            low * (high / low) ** float(u)
            for u, (low, high) in zip(
                drawn, ((0.002, 0.2), (0.01, 0.5), (0.02, 3.0), (4e-4, 8e-3)), strict=True
            )
        )
        losses = {
            "entropy": {"weight": entropy},
            "commitment_weight": commitment,
            "alignment": {**LABELS, "weight": alignment},
        }
        found.append(TrialChoice(losses=losses, learning_rate=rate))
    return found


def _merging_and_alignment() -> list[TrialChoice]:
    """Where tokens merge (early to late), and what the summary token is aligned with."""
    terms = (
        {"kind": "none"},
        {"kind": "self", "prototypes": 256, "weight": 0.5},
        {**LABELS, "weight": 0.1},
        {**LABELS, "weight": 1.0},
    )
    return [
        TrialChoice(losses={"alignment": term}, model={"encoder": {"inflection": inflection}})
        for term, inflection in product(terms, (-1.0, -0.5, 0.5, 1.0))
    ]


SWEEPS = {
    "keep_distribution": _keep_distributions(),
    "loss_weights": _loss_weights(),
    "merging_and_alignment": _merging_and_alignment(),
}


class TrialImages(NamedTuple):
    """Images (n, 3, S, S) uint8 and labels (n,) int64 of both splits, on the device; random features of the second."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    network: Extractor
    real: FeatureStatistics


@lru_cache(maxsize=1)
@torch.no_grad()
def shapes(protocol: TrialProtocol) -> TrialImages:
    """The procedural shapes of `mergevq data shapes`, in memory."""
    train, train_labels = _drawn("train", protocol.train_images)
    val, val_labels = _drawn("val", protocol.val_images)
    network, real = extractor(RandomFeaturesConfig()).to(device()), FeatureStatistics()
    for batch in val.split(PASS):
        real.update(network(unit(batch)))
    return TrialImages(train, train_labels, val, val_labels, network, real)


def _drawn(split: str, count: int) -> tuple[Tensor, Tensor]:
    pixels, labels = render(np.arange(count), split, SIZE)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return images.to(device()), torch.from_numpy(labels).to(device())


def train_trial(folder: Path, *, sweep: str, trial: int, protocol: TrialProtocol) -> dict[str, Any]:
    """Train one trial of a sweep to its end, and measure it at every rung."""
    del folder
    data, choice = shapes(protocol), SWEEPS[sweep][trial]
    every = protocol.steps // protocol.rungs
    rungs: list[dict[str, float]] = []

    def measure(step: int, tokenizer: MergeVQ) -> None:
        if step % every == 0:
            rungs.append({"step": step, **measured(tokenizer, data, protocol)})

    train_tokenizer(
        data.train,
        labels=data.train_labels,
        keep=choice.keep,
        losses=choice.losses,
        model=merged(MODEL, choice.model),
        learning_rate=choice.learning_rate,
        steps=protocol.steps,
        batch=protocol.batch,
        seed=0,
        measure=measure,
    )
    return {"sweep": sweep, "trial": trial, "rungs": rungs}


@torch.no_grad()
def measured(tokenizer: MergeVQ, data: TrialImages, protocol: TrialProtocol) -> dict[str, float]:
    """Fréchet distance of random features and PSNR at each of `KEEPS`, and top-1 of nearest neighbours of summary tokens.

    All are NaN where an image or a summary token is not finite.
    """
    found: dict[str, float] = {}
    queries: list[Tensor] = []
    finite = torch.tensor(True, device=data.val.device)
    for keep in KEEPS:
        decoded, psnr = FeatureStatistics(), Psnr()
        for batch in data.val.split(PASS):
            images = unit(batch)
            encoded = tokenizer.encode(images, keep)
            output = tokenizer.decode(encoded)
            finite &= output.isfinite().all() & encoded.summary.isfinite().all()
            decoded.update(data.network(output))
            psnr.update(images, output)
            if keep == CLASSIFIED_AT:
                queries.append(encoded.summary.float())
        if not finite:
            return dict.fromkeys((*(f"{key}_{k}" for k in KEEPS for key in ("rfd", "psnr")), "knn"), math.nan)
        found[f"rfd_{keep}"] = round(frechet_distance(data.real, decoded), 5)
        found[f"psnr_{keep}"] = round(psnr.compute()["psnr"], 4)
    bank = torch.cat(
        [
            tokenizer.encode(unit(batch), CLASSIFIED_AT).summary.float()
            for batch in data.train[: protocol.neighbours_of].split(PASS)
        ]
    )
    labels = data.train_labels[: len(bank)].cpu()
    votes = knn_votes(bank.cpu(), labels, torch.cat(queries).cpu(), data.val_labels.cpu())
    return {**found, "knn": round(votes.result().top1, 3)}
