"""The protocol of a task: the seam between the platform and what is trained.

The loop, the driver, sweeps, planning and the command line know this protocol and no task. A task is a class of its own in this
folder: a configuration (the section `task` of a recipe) with these methods.

    recipe (`TaskConfig`)   complete, section, complete_views, check, pin, kept_counts, draw_keep, tags, parameters
    training                open_data, build, begin, open_feed, compile, warning
    before a training       reads_images, unlabelled, require_data, require_measures
    after a training        evaluated, measures, evaluator, after_training, rate_factors, features, features_sha256
    sweeps                  curves, on_fewer_images
    planning                classes, random_batch
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mergevq.errors import InputError
from mergevq.training.protocol import Training
from mergevq_platform.data import Batch
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.report import EvaluationReport, KindEvaluator
from mergevq_platform.recipe import EvaluationConfig, Recipe, ResolvedRecipe, TaskConfig


@dataclass(frozen=True)
class Worker:
    """Rank, number of workers and device of this process, a folder for what need not be computed twice, and who is told of work
    before the first step."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Path | None = None
    # Called by rank 0 with the images that are measured so far, and with how many there are.
    measuring: Callable[[int, int], None] = lambda done, images: None


class Samples(Protocol):
    """A training split: images or codes."""

    path: str

    @property
    def rows(self) -> int:
        """Samples of an epoch."""

    @property
    def labelled(self) -> bool:
        """Whether they have classes."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""

    @property
    def fingerprint(self) -> str:
        """Digest of the content."""


class Feed(Protocol):
    """Batches and validations of a task, as the loop reads them."""

    @property
    def encoder(self) -> nn.Module | None:
        """The frozen model that makes batches from images on the worker's device, if there is one."""

    def stream(self, start_step: int, known_bad: Collection[int] = ()) -> AbstractContextManager[Any]:
        """This rank's micro-batches, a list for each optimizer step from `start_step` on; see `TrainStream` for `known_bad`."""

    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """A micro-batch as the model takes it, on the worker's device."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of `model` on the validation split; every rank takes its share, and all get the merged result."""


class FewImages(Protocol):
    """The limits of a measurement between the steps of a trial."""

    @property
    def keeps(self) -> tuple[int, ...] | None:
        """Kept counts; None: those of the recipe."""

    @property
    def scales(self) -> tuple[float, ...] | None:
        """Guidance scales; None: those of the recipe."""

    @property
    def images(self) -> int:
        """Images that are measured, at the most."""

    @property
    def probe_images(self) -> int:
        """Images that a probe learns from, at the most."""


class Task(TaskConfig):
    """A task: the section `task` of a recipe, with the methods of a training. Required methods raise `NotImplementedError` here."""

    @property
    def reads_images(self) -> bool:
        """Whether training reads the images of `data.path`."""
        return True

    def open_data(self, recipe: Recipe) -> Any:
        """The training split, as `Samples` and as the task's own feed takes it. Raises `InputError` for one that cannot be read."""
        raise NotImplementedError

    def build(self, recipe: Recipe, samples: Any) -> Training:
        """The training on the CPU, initialised by PyTorch's generator. Raises `InputError` for data that do not fit the model."""
        raise NotImplementedError

    def begin(self, training: Training, averaged: nn.Module) -> list[str] | None:
        """Load into `training`, and into the average of its model, the trained model that a run of this task starts from.

        Called on every rank where the run has no checkpoint yet. Returns remarks, a sentence each; None: it starts from none. Raises
        `InputError` for a model that is not there, is another than the recipe's hash says, or does not fit.
        """
        del training, averaged
        return None

    def open_feed(self, recipe: Recipe, samples: Any, worker: Worker) -> Feed:
        """Batches and validations of one worker. Raises `InputError` for data that do not belong to the model."""
        raise NotImplementedError

    def compile(self, training: Training) -> None:
        """Compile the model in place."""
        training.model().compile()

    def warning(self, losses: dict[str, float]) -> str | None:
        """The warning, given once, on the losses of a step that is not among the first."""
        del losses
        return None

    def unlabelled(self, samples: Any) -> int:
        """The number of samples without a label, where the task needs one."""
        del samples
        return 0

    def require_data(self, recipe: Recipe) -> None:
        """Open the inputs of a feed beside the training split. Raises `InputError` for what is missing or does not fit."""

    def require_measures(self, recipe: Recipe) -> None:
        """Open the networks of `after_training`, beside the evaluation split. Raises `InputError` as above."""

    @property
    def evaluated(self) -> bool:
        """Whether there is an evaluator of its checkpoints."""
        return False

    def measures(self, settings: EvaluationConfig) -> EvaluationConfig | None:
        """The settings of the networks that an evaluation opens, without those that this task's does not; None: it opens none."""
        del settings
        return None

    def evaluator(
        self, recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
    ) -> KindEvaluator[Any]:
        """The evaluator of a checkpoint (None: of the model before its first step).

        Raises `InputError` for options that do not fit, and for a task without an evaluator.
        """
        raise InputError(
            f"{recipe.name} trains a {self.kind}, which nothing evaluates: name a tokenizer, a generator or a probe"
        )

    def after_training(
        self, recipe: ResolvedRecipe, checkpoint: str, options: EvaluationOptions, run: str
    ) -> tuple[EvaluationReport, KindEvaluator[Any]]:
        """The report of the newest checkpoint of a run that has ended, and its evaluator."""
        evaluator = self.evaluator(recipe, checkpoint, options)
        return evaluator.report(run), evaluator

    @property
    def rate_factors(self) -> tuple[float, ...] | None:
        """The parts of the learning rate at which the heads of a checkpoint were trained, of which an evaluation chooses one."""
        return None

    def features(self, device: torch.device) -> nn.Module | None:
        """The frozen features that these heads read; None: the checkpoint is a whole model."""
        del device
        return None

    def features_sha256(self) -> str | None:
        """The hash of the weights of these features."""
        return None

    @property
    def curves(self) -> bool:
        """Whether sweeps can compare trainings of this task: its reports are curves, and it has `on_fewer_images`."""
        return False

    def on_fewer_images(self, recipe: ResolvedRecipe, few: FewImages) -> ResolvedRecipe:
        """The recipe with an evaluation within the limits of `few`."""
        raise NotImplementedError

    def classes(self) -> int:
        """The number of classes that the model fixes; 0 where it takes that of the data."""
        return 0

    def random_batch(self, rows: int, keep: int | None, seed: int) -> Batch:
        """A batch of noise with the cost of a real one, for tasks that read no images."""
        raise NotImplementedError


def task_of(recipe: Recipe) -> Task:
    """The recipe's task, with all its methods."""
    assert isinstance(recipe.task, Task)
    return recipe.task
