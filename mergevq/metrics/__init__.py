"""Metrics as accumulators (update, merge, compute), and probes of features. PyTorch, NumPy and nothing of a cluster."""

from mergevq.metrics.codes import ClassBalance, CodeUsage, bits_per_image, histogram_distance
from mergevq.metrics.extractors import InceptionExtractor, extractor
from mergevq.metrics.extrapolate import Extrapolated, extrapolated_distance
from mergevq.metrics.features import (
    Extractor,
    FeaturesConfig,
    InceptionFeaturesConfig,
    RandomFeaturesConfig,
    TimmFeaturesConfig,
    distance_name,
    perturbed_distance_name,
    score_name,
)
from mergevq.metrics.frechet import FeatureStatistics, Moments, frechet_distance, require_same_identity
from mergevq.metrics.inception_score import InceptionScore, InceptionScoreResult
from mergevq.metrics.kernel import KernelDistance, kernel_distance
from mergevq.metrics.knn import KnnResult, Nearest, Votes, knn_classify, knn_votes, neighbour_counts
from mergevq.metrics.manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from mergevq.metrics.mean import Mean
from mergevq.metrics.perturbed import (
    mean_distance,
    merged_cells,
    perturbed_distances,
    perturbed_source_statistics,
    perturbed_statistics,
)
from mergevq.metrics.pixels import MsSsim, Psnr, Ssim, to_uint8
from mergevq.metrics.probe import ProbeResult, linear_probe
from mergevq.metrics.recovery import RecoveryAccuracy
from mergevq.metrics.references import ReferenceStatistics, read_reference, write_reference
from mergevq.metrics.sgd_probe import SgdProbeConfig, SgdProbeResult, sgd_probe

__all__ = [
    "ClassBalance",
    "CodeUsage",
    "DensityCoverage",
    "Extractor",
    "Extrapolated",
    "FeatureStatistics",
    "FeaturesConfig",
    "InceptionExtractor",
    "InceptionFeaturesConfig",
    "InceptionScore",
    "InceptionScoreResult",
    "KernelDistance",
    "KnnResult",
    "Mean",
    "Moments",
    "MsSsim",
    "Nearest",
    "PrecisionRecall",
    "ProbeResult",
    "Psnr",
    "RandomFeaturesConfig",
    "RecoveryAccuracy",
    "ReferenceStatistics",
    "SgdProbeConfig",
    "SgdProbeResult",
    "Ssim",
    "TimmFeaturesConfig",
    "Votes",
    "bits_per_image",
    "density_coverage",
    "distance_name",
    "extractor",
    "extrapolated_distance",
    "frechet_distance",
    "histogram_distance",
    "kernel_distance",
    "knn_classify",
    "knn_votes",
    "linear_probe",
    "mean_distance",
    "merged_cells",
    "neighbour_counts",
    "perturbed_distance_name",
    "perturbed_distances",
    "perturbed_source_statistics",
    "perturbed_statistics",
    "precision_recall",
    "read_reference",
    "require_same_identity",
    "score_name",
    "sgd_probe",
    "to_uint8",
    "write_reference",
]
