"""The results of reconstructing an evaluation split at one kept count."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mergevq.metrics import CodeUsage, FeatureStatistics, Mean, Psnr, RecoveryAccuracy, Ssim
from mergevq.metrics.pixels import MsSsim
from mergevq_platform.evaluation.results import Mergeable
from mergevq_platform.evaluation.statistics import ImageSetStatistics


@dataclass
class ReconstructionResult(Mergeable):
    """Accumulators of one kept count over the evaluation split."""

    true: ImageSetStatistics = field(default_factory=ImageSetStatistics)
    recovered: FeatureStatistics = field(default_factory=FeatureStatistics)
    psnr: Psnr = field(default_factory=Psnr)
    psnr_recovered: Psnr = field(default_factory=Psnr)
    ssim: Ssim | None = None  # none, here and below: the images are too small
    ms_ssim: MsSsim | None = None
    lpips: Mean | None = None
    codes: CodeUsage | None = None
    recovery: RecoveryAccuracy = field(default_factory=RecoveryAccuracy)
    each_psnr: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (B,) of every image, in order
