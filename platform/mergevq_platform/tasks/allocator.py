"""Train a learned allocator: a head that predicts from a frozen tokenizer's grid tokens what every kept count would distort."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import nn

from mergevq.allocation import LearnedAllocator, LearnedAllocatorConfig, checked_menu
from mergevq.config import config
from mergevq.errors import InputError
from mergevq.metrics import Mean
from mergevq.number_types import Count
from mergevq.serialization import read_config
from mergevq.training.allocator import AllocatorTraining, AllocatorTrainingConfig, errors
from mergevq.training.protocol import Training
from mergevq_platform.allocation.measured import MeasuredImages, measure_split
from mergevq_platform.allocation.measured_stream import MeasuredStream, measured_batch
from mergevq_platform.data import Batch, Dataset
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.report import KindEvaluator
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.recipe import Recipe, ResolvedRecipe
from mergevq_platform.recipe.paths import RunPath
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.tokenizer_ref import find_tokenizer
from mergevq_platform.tasks.classes import require_size
from mergevq_platform.tasks.image_feed import open_images
from mergevq_platform.tasks.task import Task, Worker
from mergevq_platform.tasks.validation import Meters, validate


@config
class AllocatorTask(Task):
    """Train an allocator of kept tokens for a frozen tokenizer.

    The distortion of every count of the menu is measured once for the images that it learns from: the first
    `evaluation.probe_images` of the training split, as they are evaluated.
    """

    kind: Literal["allocator"] = "allocator"
    tokenizer: (
        RunPath  # a checkpoint, a run's directory, a URI of either, an imported tokenizer, or hf://owner/name
    )
    tokenizer_sha256: str | None = None  # of its weights; none: recorded when the run begins
    menu: tuple[Count, ...] | None = (
        None  # kept counts to choose from; none: those that the tokenizer was trained at
    )
    model: LearnedAllocatorConfig = Field(default_factory=LearnedAllocatorConfig)
    settings: AllocatorTrainingConfig = Field(default_factory=AllocatorTrainingConfig)

    def pin(self) -> Self:
        """See `TaskConfig.pin`: the tokenizer, and the menu. Raises `InputError` for a menu that it cannot reach."""
        if self.tokenizer_sha256 is not None and self.menu is not None:
            return self
        found = find_tokenizer(self.tokenizer, sha256=self.tokenizer_sha256, key="task.tokenizer")
        with checkpoints.weights(found.location, files=("config.json", "recipe.yaml")) as directory:
            model = read_config(directory)
            if self.menu is None and checkpoints.is_bare(found.location):
                raise InputError(f"{found.location} is a tokenizer without a recipe: give task.menu")
            menu = self.menu or checkpoints.recipe_of(directory).tokenizer.kept_counts()
        return replace(
            self,
            tokenizer=found.location,
            tokenizer_sha256=found.sha256,
            menu=checked_menu(menu, model),
        )

    def tags(self) -> dict[str, str]:
        """The hash of the tokenizer that it belongs to."""
        return {"mergevq.tokenizer": self.tokenizer_sha256} if self.tokenizer_sha256 else {}

    @property
    def reads_images(self) -> bool:
        """False: images are measured before the first step, and a step takes what was measured."""
        return False

    def open_data(self, recipe: Recipe) -> Dataset:
        """See `Task.open_data`."""
        return open_images(recipe)

    def build(self, recipe: Recipe, samples: Dataset) -> Training:
        """See `Task.build`."""
        del samples
        found = find_tokenizer(self.tokenizer, sha256=self.tokenizer_sha256, key="task.tokenizer")
        tokenizer = found.load()
        require_size(recipe, tokenizer, self.tokenizer)
        menu = self.pin().menu or ()  # known already but to a plan, which resolves nothing
        allocator = LearnedAllocator(self.model, menu, tokenizer.config.encoder.width, found.sha256)
        allocator.require_small(tokenizer)
        return AllocatorTraining(allocator, self.settings)

    def open_feed(self, recipe: Recipe, samples: Dataset, worker: Worker) -> AllocatorFeed:
        """See `Task.open_feed`."""
        del samples
        assert isinstance(recipe, ResolvedRecipe)
        assert self.menu is not None, "the recipe is resolved"
        return AllocatorFeed(recipe, self.tokenizer, self.menu, worker)

    def random_batch(self, rows: int, keep: int | None, seed: int) -> Batch:
        """See `Task.random_batch`: features, and distortions of about 22 dB."""
        del keep
        pinned = self.pin()
        with checkpoints.weights(pinned.tokenizer, files=checkpoints.CONFIG) as directory:
            width = read_config(directory).encoder.width
        random = torch.Generator().manual_seed(seed)
        return {
            "features": torch.randn(rows, 3 * width, generator=random),
            "distortions": 400 * torch.rand(rows, len(pinned.menu or ()), generator=random).double(),
            "label": torch.full((rows,), -1),
        }

    def evaluator(
        self, recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
    ) -> KindEvaluator[Any]:
        """See `Task.evaluator`: none, for an allocator is judged by what it does for its tokenizer."""
        raise InputError(
            f"{recipe.name} trains an allocator: evaluate its tokenizer with it, "
            f"mergevq evaluate {self.tokenizer} --budget 25 --allocator learned:{recipe.name}"
        )


@dataclass(frozen=True)
class AllocatorFeed:
    """Images that are measured before the first step, by all ranks together."""

    recipe: ResolvedRecipe
    tokenizer: str
    menu: tuple[int, ...]
    worker: Worker

    @property
    def encoder(self) -> nn.Module | None:
        """None: the tokenizer has done its work before the first step."""
        return None

    def stream(self, start_step: int, known_bad: Collection[int] = ()) -> MeasuredStream:
        """See `Feed.stream`."""
        del known_bad
        return MeasuredStream(
            self._measured(self.recipe.data.train_split),
            partition=self.recipe.batch_partition,
            seed=self.recipe.seed,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            start_step=start_step,
        )

    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """See `Feed.batch`."""
        del keep
        return {name: value.to(self.worker.device, non_blocking=True) for name, value in micro_batch.items()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """See `Feed.validate`: on the evaluation split, measured once too."""
        size, worker = self.recipe.evaluation.batch, self.worker
        starts = range(0, len(self._validation), size)[worker.rank :: worker.world_size]
        batches = (
            self.batch(measured_batch(self._validation, slice(start, start + size)), None) for start in starts
        )
        return validate(model, batches, measure_allocator, worker.world_size)

    @cached_property
    def _validation(self) -> MeasuredImages:
        return self._measured(self.recipe.data.evaluation_split)

    def _measured(self, split: str) -> MeasuredImages:
        device: Literal["cpu", "cuda"] = "cuda" if self.worker.device.type == "cuda" else "cpu"
        spec = EvaluationSpec(self.tokenizer, self.recipe, self.recipe.data.path, device)
        return measure_split(spec, split, self.menu, self.worker.cache, measuring=self.worker.measuring)


def measure_allocator(model: Any, batch: Batch, meters: Meters) -> None:
    """`level_error` and `shape_error` of log D: mean squares of the error's mean over the counts, and of what is left of it."""
    level, shape = errors(model, batch["features"], batch["distortions"])
    meters.setdefault("level_error", Mean("level_error")).update(level)
    meters.setdefault("shape_error", Mean("shape_error")).update(shape)
