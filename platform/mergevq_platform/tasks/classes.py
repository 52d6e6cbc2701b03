"""Shared parts of tasks that learn classes from labelled images, and of those that use a tokenizer's features."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from mergevq.config import config
from mergevq.errors import InputError
from mergevq.image_size import size_text
from mergevq.tokenizer import MergeVQ
from mergevq_platform.data import Dataset
from mergevq_platform.evaluation.classifier import ClassifierEvaluator, ClassifierWorker
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import Recipe, ResolvedRecipe
from mergevq_platform.recipe.paths import RunPath
from mergevq_platform.storage.tokenizer_ref import find_tokenizer, open_tokenizer
from mergevq_platform.tasks.image_feed import open_images
from mergevq_platform.tasks.task import Samples, Task


class ClassesTask(Task):
    """A task whose losses leave out images without a label."""

    def open_data(self, recipe: Recipe) -> Dataset:
        """See `Task.open_data`."""
        return open_images(recipe)

    def unlabelled(self, samples: Dataset) -> int:
        """See `Task.unlabelled`."""
        return samples.unlabelled


@config
class FeaturesTask(ClassesTask):
    """A task that classifies the features of a tokenizer."""

    kind: str
    tokenizer: (
        RunPath  # a checkpoint, a run's directory, a URI of either, an imported tokenizer, or hf://owner/name
    )
    tokenizer_sha256: str | None = None  # of its weights; none: recorded when the run begins

    def pin(self) -> Self:
        """See `TaskConfig.pin`."""
        if self.tokenizer_sha256 is not None:
            return self
        found = find_tokenizer(self.tokenizer, key="task.tokenizer")
        return replace(self, tokenizer=found.location, tokenizer_sha256=found.sha256)

    @property
    def evaluated(self) -> bool:
        """True."""
        return True

    def evaluator(
        self, recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
    ) -> ClassifierEvaluator:
        """See `Task.evaluator`: the top-1."""
        spec = EvaluationSpec(checkpoint, recipe, options.data or recipe.data.path, options.device)
        passes = Passes(answers(ClassifierWorker, spec, options.workers), options.cache)
        return ClassifierEvaluator(spec, passes, options.step, options.say)

    def open_features(self, recipe: Recipe, samples: Dataset) -> MergeVQ:
        """The tokenizer. Raises `InputError` for one that does not fit the images, and for images without labels."""
        if not samples.labelled:
            raise InputError(f"{samples.path} has no labels: nothing can be classified on it")
        tokenizer = self.open_tokenizer()
        require_size(recipe, tokenizer, self.tokenizer)
        return tokenizer

    def open_tokenizer(self) -> MergeVQ:
        """The tokenizer. Raises `InputError` if another lies there than the recipe's hash says."""
        return open_tokenizer(self.tokenizer, self.tokenizer_sha256, key="task.tokenizer")


def require_size(recipe: Recipe, tokenizer: MergeVQ, location: str) -> None:
    """Raise `InputError` unless the tokenizer at `location` works at the size of the recipe's images."""
    size = tokenizer.config.image_size
    if recipe.data.views.image_size != size:
        raise InputError(
            f"data.views.image_size is {size_text(recipe.data.views.image_size)} but {location} works at {size_text(size)}: make them equal"
        )


def require_classes(samples: Samples, classes: int, what: str) -> None:
    """Raise `InputError` unless the samples have as many classes as the model of `what`."""
    if not samples.labelled:
        raise InputError(f"{samples.path} has no labels: {what} cannot be trained on it")
    if classes != samples.num_classes:
        raise InputError(
            f"task.model.classes is {classes} but {samples.path} has {samples.num_classes} classes: make them equal"
        )
