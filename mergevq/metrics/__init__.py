"""Metrics as accumulators (update, merge, compute), and probes of features. PyTorch, NumPy and nothing of a cluster."""

from mergevq.metrics.codes import CodeUsage
from mergevq.metrics.extractors import Extractor, FeaturesConfig, RandomFeatures, TimmFeatures, extractor
from mergevq.metrics.frechet import FeatureStatistics, frechet_distance, require_same_identity
from mergevq.metrics.knn import KnnResult, knn_classify
from mergevq.metrics.mean import Mean
from mergevq.metrics.pixels import Psnr, Ssim, to_uint8
from mergevq.metrics.probe import ProbeResult, linear_probe
from mergevq.metrics.recovery import RecoveryAccuracy

__all__ = [
    "CodeUsage",
    "Extractor",
    "FeatureStatistics",
    "FeaturesConfig",
    "KnnResult",
    "Mean",
    "ProbeResult",
    "Psnr",
    "RandomFeatures",
    "RecoveryAccuracy",
    "Ssim",
    "TimmFeatures",
    "extractor",
    "frechet_distance",
    "knn_classify",
    "linear_probe",
    "require_same_identity",
    "to_uint8",
]
