"""Pictures against pictures: Fréchet distance, Inception score, precision and recall of any folder, without a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.table import Table

import mergevq
from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.metrics import (
    ClassBalance,
    FeaturesConfig,
    FeatureStatistics,
    InceptionExtractor,
    InceptionScore,
    Moments,
    ReferenceStatistics,
    distance_name,
    extractor,
    extrapolated_distance,
    frechet_distance,
    precision_recall,
    read_reference,
    score_name,
)
from mergevq.metrics.manifold import K as NEIGHBOURHOOD
from mergevq_platform.data import ImageSet, open_images, to_unit_range
from mergevq_platform.data.image_sets import PackedImages
from mergevq_platform.data.npz_images import NpzImages
from mergevq_platform.evaluation.answers import merge
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.measuring import BATCHES_PER_JOB, JOBS_PER_PASS, averaged
from mergevq_platform.recipe import EvaluationConfig
from mergevq_platform.seen import SPLITS
from mergevq_platform.storage.files import json_text

FEWEST_FOR_TREND = 100  # pictures below which no distance is extrapolated


@dataclass(frozen=True, kw_only=True)
class PictureTask:
    """Which pictures are looked at by whom; travels to workers."""

    images: str
    reference: str | None  # none: nothing to compare with
    extractor: dict[str, Any]
    device: Literal["cpu", "cuda"]
    batch: int = 64
    size: int | None = None
    split: str | None = None

    def open(self, which: Literal["images", "reference"]) -> ImageSet:
        """The pictures, or those that they are compared with."""
        place = getattr(self, which)
        return open_images(place, self.batch, size=self.size, split=self.split, option=f"--{which}")

    @property
    def settings(self) -> FeaturesConfig:
        """The extractor's configuration."""
        return parse(EvaluationConfig, {"extractor": self.extractor}).extractor


class PictureJob(NamedTuple):
    """Some batches of one of the sets."""

    which: Literal["images", "reference"]
    batches: tuple[int, ...]


class PictureEvaluator:
    """One process's extractor and pictures; answers jobs with features (B, D) float32 by name, and labels."""

    def __init__(self, task: PictureTask) -> None:
        self.task, self.device = task, torch.device(task.device)
        self.network = extractor(task.settings, key="--extractor").to(self.device)
        self.opened: dict[str, ImageSet] = {}

    def answer(self, job: PictureJob) -> dict[str, np.ndarray]:
        """Do one job."""
        if job.which not in self.opened:
            self.opened[job.which] = self.task.open(job.which)
        return merge(self._batch(self.opened[job.which].batch(index)) for index in job.batches)

    def _batch(self, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        images = to_unit_range({"image": batch["image"]}, self.device)["image"]
        match self.network:
            case InceptionExtractor() as inception:
                found = inception.outputs(images)._asdict()
            case network:
                found = {"pool": network(images)}
        return {name: value.cpu().numpy() for name, value in found.items()} | {
            "label": batch["label"].numpy()
        }


@dataclass(frozen=True)
class PictureScores:
    """What pictures are worth against a reference, with the protocol of every number."""

    images: str
    values: dict[str, float]
    protocol: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json_text(asdict(self)))

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.images, caption=self.caption())
        table.add_column("metric")
        table.add_column("value", justify="right")
        for key, value in self.values.items():
            table.add_row(key, f"{value:.4g}")
        return table

    def markdown(self) -> str:
        """As a Markdown table of one row."""
        keys = list(self.values)
        rows = ["| pictures | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
        rows.append(f"| {self.images} | " + " | ".join(f"{self.values[key]:.4g}" for key in keys) + " |")
        return "\n".join([*rows, "", self.caption()])

    def caption(self) -> str:
        """Counts, reference and extractor in one sentence."""
        p = self.protocol
        count = p["reference_images"]
        against = f"{count:,} pictures" if count else "an unknown number of pictures"
        against = f" against {against} of {p['reference']}" if p["reference"] else ""
        biased = (
            " No more pictures than features: the distance is strongly biased upwards." if p["biased"] else ""
        )
        return (
            f"{p['images']:,} pictures of {p['size']} px{against}; "
            f"{p['extractor']['description']}, {p['extractor']['resize']}.{biased}"
            + "".join(f" No {what}: {reason}." for what, reason in p.get("lacking", {}).items())
        )


@dataclass
class PictureMeasurement:
    """Two sets of pictures under measurement, or one and the statistics of another; `ask(jobs)` yields the answers."""

    task: PictureTask
    ask: Callable[[Sequence[Any]], Iterable[Any]]
    cache: Cache | None = None
    seeds: int = 1
    say: Callable[[str], None] = lambda text: None
    lacking: dict[str, str] = field(default_factory=dict)  # what so few images do not allow, and why

    def __post_init__(self) -> None:
        self.network = extractor(self.task.settings, key="--extractor")
        self.identity = {"name": self.network.name, **self.network.identity}

    def scores(self) -> PictureScores:
        """All that these features allow: what cannot be had (an npz has no features for recall) is left out."""
        self._require_split()
        found = {
            key: value for key, value in (self._distances() | self._alone()).items() if math.isfinite(value)
        }
        return PictureScores(self.task.images, found, self._protocol())

    def statistics(self) -> ReferenceStatistics:
        """The moments of the judged pictures, for others to be compared with."""
        return self._moments(self.found)

    def _distances(self) -> dict[str, float]:
        if self.reference is None:
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
            manifold = precision_recall(pool, torch.from_numpy(self.compared["pool"]))
            for name in ("precision", "recall"):
                values[score_name(self.network, name)] = getattr(manifold, name)
        return values

    def _alone(self) -> dict[str, float]:
        values: dict[str, float] = {}
        count = len(self.found["pool"])
        if "logits" in self.found and count >= SPLITS:
            score = InceptionScore(count, splits=SPLITS)
            score.update(torch.from_numpy(self.found["logits"]), torch.arange(count))
            result, name = score.compute(), score_name(self.network, "inception_score")
            values |= {name: result.mean, f"{name}_std": result.std}
        if self.pictures.classes:
            balance = ClassBalance(len(self.pictures.classes))
            labels = torch.from_numpy(self.found["label"])
            balance.update(labels[labels >= 0])
            if without := int((labels < 0).sum()):
                self.lacking["class"] = (
                    f"{without:,} of {count:,} images, which are not in the shares of classes"
                )
            values |= balance.compute()
        return values

    @cached_property
    def pictures(self) -> ImageSet:
        """Those that are judged."""
        return self._opened("images")

    @cached_property
    def others(self) -> ImageSet | None:
        """Those that they are compared with; none without a reference, or where it is statistics alone."""
        if self.task.reference is None or _is_statistics(self.task.reference):
            return None
        return self._opened("reference")

    @cached_property
    def found(self) -> dict[str, np.ndarray]:
        """Their features."""
        return self._features("images", self.pictures)

    @cached_property
    def compared(self) -> dict[str, np.ndarray] | None:
        """The features of the reference; none where there is none, or statistics alone."""
        other = self.others
        if other is None:
            return None
        if other.size != self.pictures.size:
            fixed = next((p.size for p in (self.pictures, other) if isinstance(p, NpzImages)), "S")
            raise InputError(
                f"{self.task.images} has pictures of {self.pictures.size} px, {self.task.reference} of {other.size}: "
                f"--size {fixed} brings both to one size"
            )
        return self._features("reference", other)

    @cached_property
    def reference(self) -> ReferenceStatistics | None:
        """The moments that distances are measured from. Raises `InputError` for another extractor's."""
        if self.compared is not None:
            return self._moments(self.compared)
        if self.task.reference is None:
            return None
        read = read_reference(self.task.reference, key="--reference")
        read.require_extractor(self.identity)
        numbers = self.found["pool"].shape[1]
        if len(read.pool.mean) != numbers:
            raise InputError(
                f"--reference: {self.task.reference} holds statistics of {len(read.pool.mean)} numbers, {self.network.name} gives "
                f"{numbers}: give those of this extractor, or name theirs"
            )
        return read

    def _require_split(self) -> None:
        # A set without splits would be taken whole.
        if self.task.split is not None and not any(
            isinstance(opened, PackedImages) for opened in (self.pictures, self.others)
        ):
            raise InputError(
                f"--split {self.task.split}: {self.task.images} is no packed set and has no splits: leave it out"
            )

    def _opened(self, which: Literal["images", "reference"]) -> ImageSet:
        opened = self.task.open(which)
        if self.task.size is not None and opened.size != self.task.size:
            raise InputError(
                f"--size {self.task.size}: the samples of {getattr(self.task, which)} are taken as they are, {opened.size} px: "
                "leave it out, or give them as a folder of files"
            )
        for line in opened.said:
            self.say(line)
        return opened

    def _moments(self, found: dict[str, np.ndarray]) -> ReferenceStatistics:
        spatial = _moments(found["spatial"]) if "spatial" in found else None
        return ReferenceStatistics(_moments(found["pool"]), spatial, self.identity)

    def _features(self, which: Literal["images", "reference"], pictures: ImageSet) -> dict[str, np.ndarray]:
        size = max(BATCHES_PER_JOB, math.ceil(pictures.num_batches / JOBS_PER_PASS))
        every = range(pictures.num_batches)
        jobs = [PictureJob(which, tuple(every[start : start + size])) for start in every[::size]]
        if self.cache is None:
            return merge(self.ask(jobs))
        key = {
            "kind": "pictures",
            "data": pictures.fingerprint,
            "images": pictures.images,
            "batch": self.task.batch,
            "size": pictures.size,
            "extractor": self.identity,
        }
        if pictures.background is not None:  # of opaque samples, and of sets of before, the key is as it was
            key["background"] = pictures.background
        return self.cache.through(key, jobs, self.ask)

    def _name(self, measure: Any) -> str:
        return distance_name(self.network, "generation", measure)

    def _protocol(self) -> dict[str, Any]:
        images, dim = self.found["pool"].shape
        count = self.reference.pool.images if self.reference else None
        return {
            "images": images,
            "size": self.pictures.size,
            "data_fingerprint": self.pictures.fingerprint,
            "background": self.pictures.background,
            "left_out": list(self.pictures.said),
            "reference": self.task.reference,
            "reference_images": count,
            "extractor": self.identity,
            "biased": self.reference is not None and min(images, count or images) <= dim,
            "seeds": self.seeds,
            "inception_score": f"{SPLITS} splits, shuffled",
            "precision_recall": f"{NEIGHBOURHOOD} nearest neighbours",
            **({"lacking": dict(self.lacking)} if self.lacking else {}),
            "mergevq": mergevq.__version__,
        }


def _moments(features: np.ndarray) -> Moments:
    statistics = FeatureStatistics()
    statistics.update(torch.from_numpy(features))
    return statistics.moments()


def _is_statistics(place: str) -> bool:
    if Path(place).suffix.lower() != ".npz" or not Path(place).is_file():
        return False
    with np.load(place, allow_pickle=False) as arrays:
        return {"mu", "sigma"} <= set(arrays.files)
