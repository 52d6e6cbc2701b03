"""The answers of jobs, and how they come together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergevq.metrics import CodeUsage, FeatureStatistics, Mean, Psnr, RecoveryAccuracy, Ssim
from mergevq.metrics.pixels import MsSsim
from mergevq_platform.seen import Parts, Seen


@dataclass
class Reconstruction(Parts):
    """Accumulators of one kept count over the evaluation split."""

    true: Seen = field(default_factory=Seen)
    recovered: FeatureStatistics = field(default_factory=FeatureStatistics)
    psnr: Psnr = field(default_factory=Psnr)
    psnr_recovered: Psnr = field(default_factory=Psnr)
    ssim: Ssim | None = None  # none, here and below: the pictures are too small
    ms_ssim: MsSsim | None = None
    lpips: Mean | None = None
    codes: CodeUsage | None = None
    recovery: RecoveryAccuracy = field(default_factory=RecoveryAccuracy)
    each_psnr: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (B,) of every picture, in order


def merge(parts: Iterable[Any]) -> Any:
    """One answer of many, in their order: accumulators merge, arrays (B, …) by name follow each other, numbers by name
    come together."""
    parts = iter(parts)
    first = next(parts)
    if isinstance(first, dict):
        every = [first, *parts]
        if isinstance(next(iter(first.values())), np.ndarray):
            return {name: np.concatenate([part[name] for part in every]) for name in first}
        return {name: value for part in every for name, value in part.items()}
    for part in parts:
        first = first.merge(part)
    return first
