"""The worker's side of image sets: features of their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from mergevq.image_size import ImageSize
from mergevq.metrics import (
    FeaturesConfig,
    InceptionExtractor,
    extractor,
)
from mergevq_platform.data import ImageSet, open_images, to_unit_range
from mergevq_platform.evaluation.results import merge
from mergevq_platform.evaluation.worker import WorkerProcess


@dataclass(frozen=True, kw_only=True)
class ImageSetsSpec:
    """Two image sets and the features that compare them; travels to workers."""

    images: str
    reference: str | None  # none: nothing to compare with
    extractor: FeaturesConfig
    device: Literal["cpu", "cuda"]
    batch: int = 64
    size: ImageSize | None = None
    split: str | None = None

    def open(self, which: Literal["images", "reference"]) -> ImageSet:
        """The images, or those that they are compared with."""
        place = getattr(self, which)
        return open_images(place, self.batch, size=self.size, split=self.split, option=f"--{which}")


class ImageSetJob(NamedTuple):
    """Some batches of one of the sets."""

    which: Literal["images", "reference"]
    batches: tuple[int, ...]

    def on_batches(self, process: WorkerProcess) -> dict[str, np.ndarray]:
        """Features and labels of the batches."""
        return process.worker(ImageSetsWorker).answer(self)


class ImageSetsWorker:
    """One process's feature network and images; results are features (B, D) float32 by name, and labels."""

    def __init__(self, spec: ImageSetsSpec) -> None:
        self.spec, self.device = spec, torch.device(spec.device)
        self.network = extractor(spec.extractor, key="--extractor").to(self.device)
        self.opened: dict[str, ImageSet] = {}

    def answer(self, job: ImageSetJob) -> dict[str, np.ndarray]:
        """Do one job."""
        if job.which not in self.opened:
            self.opened[job.which] = self.spec.open(job.which)
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
