"""Train the stand-in teacher, a small classifier."""

from __future__ import annotations

from typing import Any, Literal

from mergevq.config import config
from mergevq.metrics import Mean
from mergevq.teachers.stand_in import StandInClassifier, StandInConfig
from mergevq.training.classifier import ClassifierTraining
from mergevq.training.protocol import Training
from mergevq_platform.data import Batch, Dataset
from mergevq_platform.recipe import Recipe
from mergevq_platform.tasks.classes import ClassesTask, require_classes
from mergevq_platform.tasks.image_feed import ImageFeed
from mergevq_platform.tasks.task import Worker
from mergevq_platform.tasks.validation import Meters


@config
class ClassifierTask(ClassesTask):
    """Train the stand-in teacher: a small classifier on the same images. It sees the labels."""

    kind: Literal["classifier"] = "classifier"
    model: StandInConfig

    def build(self, recipe: Recipe, samples: Dataset) -> Training:
        """See `Task.build`."""
        require_classes(samples, self.model.classes, "a classifier")
        return ClassifierTraining(StandInClassifier(self.model))

    def open_feed(self, recipe: Recipe, samples: Dataset, worker: Worker) -> ImageFeed:
        """See `Task.open_feed`."""
        return ImageFeed(recipe, samples, worker, measure_classifier)


def measure_classifier(model: Any, batch: Batch, meters: Meters) -> None:
    """Accuracy of a classifier on the labelled images."""
    right = model(batch["image"]).argmax(-1) == batch["label"]
    meters.setdefault("accuracy", Mean("accuracy")).update(right[batch["label"] >= 0])
