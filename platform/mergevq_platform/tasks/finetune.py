"""Fine-tune a tokenizer's encoder for classification."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mergevq.config import config
from mergevq.training.finetune import FineTuneConfig, FineTuneTraining
from mergevq.training.protocol import Training
from mergevq_platform.data import Dataset
from mergevq_platform.recipe import Recipe
from mergevq_platform.tasks.classes import FeaturesTask
from mergevq_platform.tasks.classifier import measure_classifier
from mergevq_platform.tasks.image_feed import ImageFeed
from mergevq_platform.tasks.task import Worker


@config
class FineTuneTask(FeaturesTask):
    """Fine-tune a tokenizer's encoder for classification (paper, A.4)."""

    kind: Literal["finetune"] = "finetune"
    settings: FineTuneConfig = Field(default_factory=FineTuneConfig)

    def build(self, recipe: Recipe, samples: Dataset) -> Training:
        """See `Task.build`."""
        tokenizer = self.open_features(recipe, samples)
        return FineTuneTraining(tokenizer, self.settings, classes=samples.num_classes)

    def open_feed(self, recipe: Recipe, samples: Dataset, worker: Worker) -> ImageFeed:
        """See `Task.open_feed`."""
        return ImageFeed(recipe, samples, worker, measure_classifier)
