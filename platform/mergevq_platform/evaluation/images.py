"""The evaluation of image sets without a model: Fréchet distance, Inception score, precision and recall of any folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import mergevq
from mergevq.errors import InputError
from mergevq.image_size import ImageSize, size_text
from mergevq.metrics import (
    ClassBalance,
    FeatureStatistics,
    InceptionScore,
    Moments,
    ReferenceStatistics,
    distance_name,
    extractor,
    extrapolated_distance,
    frechet_distance,
    read_reference,
    score_name,
)
from mergevq.metrics.manifold import DENSITY_K
from mergevq.metrics.manifold import K as NEIGHBOURHOOD
from mergevq_platform.data import ImageSet
from mergevq_platform.data.image_sets import PackedImages
from mergevq_platform.data.npz_images import NpzImages
from mergevq_platform.evaluation.distribution import distribution_protocol, distribution_scores
from mergevq_platform.evaluation.images_report import ImageSetsReport
from mergevq_platform.evaluation.images_worker import ImageSetJob, ImageSetsSpec
from mergevq_platform.evaluation.manifold import precision_recall
from mergevq_platform.evaluation.passes import Passes, jobs_of_batches
from mergevq_platform.evaluation.repetitions import averaged
from mergevq_platform.evaluation.statistics import SPLITS
from mergevq_platform.evaluation.tokenizer_passes import BATCHES_PER_JOB

DISTRIBUTION = "KID, density and coverage"
FEWEST_FOR_TREND = 100  # images below which no distance is extrapolated


@dataclass
class ImageSetsEvaluator:
    """The evaluation of a set of images against another, or against statistics; workers do its passes."""

    spec: ImageSetsSpec
    passes: Passes
    seeds: int = 1
    say: Callable[[str], None] = lambda text: None
    distribution: bool = False  # KID, density and coverage too
    lacking: dict[str, str] = field(default_factory=dict)  # what so few images do not allow, and why

    def __post_init__(self) -> None:
        self.network = extractor(self.spec.extractor, key="--extractor")
        self.plan: dict[str, Any] = {}  # the protocol of KID, density and coverage
        self.identity = {"name": self.network.name, **self.network.identity}

    def report(self, run: str) -> ImageSetsReport:
        """All metrics that these features allow; the others (an npz of statistics has no features for recall) are left out."""
        self._require_split()
        found = {
            key: value for key, value in (self._distances() | self._alone()).items() if math.isfinite(value)
        }
        return ImageSetsReport(run, found, self._protocol())

    def write_figures(self, report: ImageSetsReport, folder: Path) -> dict[str, Path]:
        """No figures."""
        return {}

    def statistics(self) -> ReferenceStatistics:
        """The moments of the images, for others to be compared with."""
        return self._moments(self.found)

    def _distances(self) -> dict[str, float]:
        if self.reference is None:
            if self.distribution:
                self.lacking[DISTRIBUTION] = "no --reference to compare with"
            return {}
        pool, values = torch.from_numpy(self.found["pool"]), {}
        mine = self.statistics()
        values[self._name("fd")] = frechet_distance(mine.pool, self.reference.pool)
        if mine.spatial is not None and self.reference.spatial is not None:
            values[self._name("sfd")] = frechet_distance(mine.spatial, self.reference.spatial)
        if len(pool) >= FEWEST_FOR_TREND:
            limits = [
                {self._name("fd_inf"): extrapolated_distance(pool, self.reference.pool, seed=seed).distance}
                for seed in range(self.seeds)
            ]
            values |= averaged(limits)
        fewest = min(len(pool), len(self.compared["pool"])) if self.compared is not None else 0
        if self.compared is not None and fewest <= NEIGHBOURHOOD:
            self.lacking["precision and recall"] = f"{fewest} images do not have {NEIGHBOURHOOD} neighbours"
        elif self.compared is not None:
            assert self.others is not None
            manifold = precision_recall(
                self.passes,
                self.found["pool"],
                self._key(self.images),
                self.compared["pool"],
                self._key(self.others),
            )
            values |= {score_name(self.network, name): value for name, value in manifold.items()}
        return values | (self._distribution() if self.distribution else {})

    def _distribution(self) -> dict[str, float]:
        if self.compared is None or self.others is None:
            self.lacking[DISTRIBUTION] = "statistics alone, which have no features"
            return {}
        mine, theirs = self.found["pool"], self.compared["pool"]
        if min(len(mine), len(theirs)) <= DENSITY_K:
            self.lacking[DISTRIBUTION] = (
                f"{min(len(mine), len(theirs))} images do not have {DENSITY_K} neighbours"
            )
            return {}
        found = distribution_scores(self.passes, mine, self._key(self.images), theirs, self._key(self.others))
        self.plan = distribution_protocol(len(mine), len(theirs))
        return {score_name(self.network, name): value for name, value in found.items()}

    def _alone(self) -> dict[str, float]:
        values: dict[str, float] = {}
        count = len(self.found["pool"])
        if "logits" in self.found and count >= SPLITS:
            score = InceptionScore(count, splits=SPLITS)
            score.update(torch.from_numpy(self.found["logits"]), torch.arange(count))
            result, name = score.compute(), score_name(self.network, "inception_score")
            values |= {name: result.mean, f"{name}_std": result.std}
        if self.images.classes:
            balance = ClassBalance(len(self.images.classes))
            labels = torch.from_numpy(self.found["label"])
            balance.update(labels[labels >= 0])
            if without := int((labels < 0).sum()):
                self.lacking["class"] = (
                    f"{without:,} of {count:,} images, which are not in the shares of classes"
                )
            values |= balance.compute()
        return values

    @cached_property
    def images(self) -> ImageSet:
        """The evaluated images."""
        return self._opened("images")

    @cached_property
    def others(self) -> ImageSet | None:
        """The images of the reference; None without one, or where it is statistics alone."""
        if self.spec.reference is None or _is_statistics(self.spec.reference):
            return None
        return self._opened("reference")

    @cached_property
    def found(self) -> dict[str, np.ndarray]:
        """The features of the evaluated images."""
        return self._features("images", self.images)

    @cached_property
    def compared(self) -> dict[str, np.ndarray] | None:
        """The features of the reference; none where there is none, or statistics alone."""
        other = self.others
        if other is None:
            return None
        if other.size != self.images.size:
            sizes = (_typed(p.size) for p in (self.images, other) if isinstance(p, NpzImages))
            fixed = next(sizes, "S")
            raise InputError(
                f"{self.spec.images} has images of {size_text(self.images.size)} px, {self.spec.reference} of "
                f"{size_text(other.size)}: "
                f"--size {fixed} brings both to one size"
            )
        return self._features("reference", other)

    @cached_property
    def reference(self) -> ReferenceStatistics | None:
        """The moments that distances are measured from. Raises `InputError` for another extractor's."""
        if self.compared is not None:
            return self._moments(self.compared)
        if self.spec.reference is None:
            return None
        read = read_reference(self.spec.reference, key="--reference")
        read.require_extractor(self.identity)
        numbers = self.found["pool"].shape[1]
        if len(read.pool.mean) != numbers:
            raise InputError(
                f"--reference: {self.spec.reference} holds statistics of {len(read.pool.mean)} numbers, {self.network.name} gives "
                f"{numbers}: give those of this extractor, or name theirs"
            )
        return read

    def _require_split(self) -> None:
        # A set without splits would be taken whole.
        if self.spec.split is not None and not any(
            isinstance(opened, PackedImages) for opened in (self.images, self.others)
        ):
            raise InputError(
                f"--split {self.spec.split}: {self.spec.images} is no packed set and has no splits: leave it out"
            )

    def _opened(self, which: Literal["images", "reference"]) -> ImageSet:
        opened = self.spec.open(which)
        if self.spec.size is not None and opened.size != self.spec.size:
            raise InputError(
                f"--size {_typed(self.spec.size)}: the samples of {getattr(self.spec, which)} are taken as they are, "
                f"{size_text(opened.size)} px: "
                "leave it out, or give them as a folder of files"
            )
        for line in opened.said:
            self.say(line)
        return opened

    def _moments(self, found: dict[str, np.ndarray]) -> ReferenceStatistics:
        spatial = _moments(found["spatial"]) if "spatial" in found else None
        return ReferenceStatistics(_moments(found["pool"]), spatial, self.identity)

    def _features(self, which: Literal["images", "reference"], images: ImageSet) -> dict[str, np.ndarray]:
        jobs = [
            ImageSetJob(which, numbers) for numbers in jobs_of_batches(images.num_batches, BATCHES_PER_JOB)
        ]
        return self.passes.result(self._key(images), jobs)

    def _key(self, images: ImageSet) -> dict[str, Any]:
        key = {
            "kind": "pictures",
            "data": images.fingerprint,
            "images": images.images,
            "batch": self.spec.batch,
            "size": images.size,
            "extractor": self.identity,
        }
        if images.background is not None:
            key["background"] = images.background
        return key

    def _name(self, measure: Literal["fd", "sfd", "fd_inf"]) -> str:
        return distance_name(self.network, "generation", measure)

    def _protocol(self) -> dict[str, Any]:
        images, dim = self.found["pool"].shape
        count = self.reference.pool.images if self.reference else None
        return {
            "images": images,
            "size": self.images.size,
            "data_fingerprint": self.images.fingerprint,
            "background": self.images.background,
            "left_out": list(self.images.said),
            "reference": self.spec.reference,
            "reference_images": count,
            "extractor": self.identity,
            "biased": self.reference is not None and min(images, count or images) <= dim,
            "seeds": self.seeds,
            "inception_score": f"{SPLITS} splits, shuffled",
            "precision_recall": f"{NEIGHBOURHOOD} nearest neighbours",
            **({"distribution": self.plan} if self.plan else {}),
            **({"lacking": dict(self.lacking)} if self.lacking else {}),
            "mergevq": mergevq.__version__,
        }


def _typed(size: ImageSize) -> str:
    return size_text(size).replace(" ", "")


def _moments(features: np.ndarray) -> Moments:
    statistics = FeatureStatistics()
    statistics.update(torch.from_numpy(features))
    return statistics.moments()


def _is_statistics(place: str) -> bool:
    if Path(place).suffix.lower() != ".npz" or not Path(place).is_file():
        return False
    with np.load(place, allow_pickle=False) as arrays:
        return {"mu", "sigma"} <= set(arrays.files)
