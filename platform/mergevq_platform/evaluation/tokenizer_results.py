"""The results of a tokenizer's passes, and the findings that figures show."""

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


@dataclass
class TokenizerFindings:
    """Single images and codes that figures show beside the curve."""

    each_psnr: dict[int, np.ndarray] = field(default_factory=dict)  # kept tokens -> (images,) dB
    code_counts: dict[int, np.ndarray] = field(default_factory=dict)  # kept tokens -> (V,) how often
    neighbours: np.ndarray | None = None  # (queries, k) rows of the train split, nearest first
    neighbours_keep: int = 0
