"""Train linear probes on the features of a frozen tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from pydantic import Field

from mergevq.config import config
from mergevq.metrics import Mean
from mergevq.training.probe import FrozenFeatures, ProbeTraining, ProbeTrainingConfig
from mergevq.training.protocol import Training
from mergevq_platform.data import Batch, Dataset
from mergevq_platform.recipe import Recipe
from mergevq_platform.storage.tokenizer_ref import find_tokenizer
from mergevq_platform.tasks.classes import FeaturesTask
from mergevq_platform.tasks.image_feed import ImageFeed
from mergevq_platform.tasks.task import Worker
from mergevq_platform.tasks.validation import Meters


@config
class ProbeTask(FeaturesTask):
    """Train linear probes on a frozen tokenizer's features of augmented views (paper, A.4)."""

    kind: Literal["probe"] = "probe"
    settings: ProbeTrainingConfig = Field(default_factory=ProbeTrainingConfig)

    def build(self, recipe: Recipe, samples: Dataset) -> Training:
        """See `Task.build`."""
        tokenizer = self.open_features(recipe, samples)
        return ProbeTraining(tokenizer, self.settings, classes=samples.num_classes)

    def open_feed(self, recipe: Recipe, samples: Dataset, worker: Worker) -> ImageFeed:
        """See `Task.open_feed`."""
        features = cache(lambda: self.features(worker.device))  # loaded at the first validation

        def measure(heads: Any, batch: Batch, meters: Meters) -> None:
            """Accuracy of each head on the labelled images."""
            right = heads(features()(batch["image"])).argmax(-1) == batch["label"]
            for index, row in enumerate(right):
                name = f"accuracy_{index}"
                meters.setdefault(name, Mean(name)).update(row[batch["label"] >= 0])

        return ImageFeed(recipe, samples, worker, measure)

    @property
    def rate_factors(self) -> tuple[float, ...]:
        """Learning-rate factors, one head each."""
        return self.settings.rate_factors

    def features(self, device: torch.device) -> FrozenFeatures:
        """The features that the heads read, of the tokenizer that the recipe names."""
        return FrozenFeatures(self.open_tokenizer(), self.settings).to(device)

    def features_sha256(self) -> str:
        """Hash of the tokenizer's weights; computed for recipes that did not record it."""
        return self.tokenizer_sha256 or find_tokenizer(self.tokenizer, key="task.tokenizer").sha256
