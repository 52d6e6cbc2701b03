"""Stage 1: train a MergeVQ tokenizer, and measure its curve over kept counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from mergevq.config import Tree, config
from mergevq.metrics import CodeUsage, Psnr, RecoveryAccuracy
from mergevq.tokenizer import MergeVQ
from mergevq.training.protocol import Training
from mergevq.training.tokenizer import TokenizerTraining, build_training
from mergevq_platform.data import Batch, Dataset
from mergevq_platform.recipe import Recipe, ResolvedRecipe, TaskConfig, TokenizerTaskConfig
from mergevq_platform.recipe.task_config import leaves_to_initial_run
from mergevq_platform.tasks.image_feed import ImageFeed, open_images
from mergevq_platform.tasks.initial import UnreadTokenizerTask, begin_from, pinned
from mergevq_platform.tasks.task import FewImages, Worker
from mergevq_platform.tasks.tokenizer_evaluation import TokenizerCheckpointTask
from mergevq_platform.tasks.validation import Meters

LOW_CODE_USAGE = 0.05  # codebook entropy below this share of its maximum is worth a warning


@config
class TokenizerTask(TokenizerTaskConfig, TokenizerCheckpointTask):
    """Train a MergeVQ tokenizer."""

    @classmethod
    def section(cls, tree: Tree) -> type[TaskConfig]:
        """See `TaskConfig.section`."""
        return UnreadTokenizerTask if leaves_to_initial_run(tree) else cls

    def pin(self) -> TokenizerTaskConfig:
        """See `TaskConfig.pin`: the tokenizer that training starts from."""
        return pinned(self) if self.initial_run and self.initial_run_sha256 is None else self

    def open_data(self, recipe: Recipe) -> Dataset:
        """See `Task.open_data`."""
        return open_images(recipe)

    def build(self, recipe: Recipe, samples: Dataset) -> Training:
        """See `Task.build`."""
        return build_training(self.losses, self.initial_model(), seed=recipe.seed, key="task.losses")

    def begin(self, training: Training, averaged: nn.Module) -> list[str] | None:
        """See `Task.begin`: from the initial run, if there is one."""
        if self.initial_run is None:
            return None
        assert isinstance(training, TokenizerTraining)
        assert isinstance(averaged, MergeVQ)
        return begin_from(self, training, averaged)

    def open_feed(self, recipe: Recipe, samples: Dataset, worker: Worker) -> ImageFeed:
        """See `Task.open_feed`."""
        return ImageFeed(recipe, samples, worker, measure_tokenizer)

    def warning(self, losses: dict[str, float]) -> str | None:
        """A warning where few codes are in use."""
        if self.model.quantizer.kind != "lfq":
            return None
        highest = self.model.quantizer.max_entropy
        if losses["codebook_entropy"] >= LOW_CODE_USAGE * highest:
            return None
        return (
            f"the codebook entropy is {losses['codebook_entropy']:.2f} nats of at most {highest:.2f}, few codes "
            "are used; raise task.losses.entropy.weight or lower optimizer.learning_rate"
        )

    @property
    def curves(self) -> bool:
        """True."""
        return True

    def on_fewer_images(self, recipe: ResolvedRecipe, few: FewImages) -> ResolvedRecipe:
        """See `Task.on_fewer_images`."""
        settings = recipe.evaluation
        settings = replace(
            settings,
            keeps=few.keeps or settings.keeps,
            images=min(few.images, settings.images or few.images),
            probe_images=min(few.probe_images, settings.probe_images or few.probe_images),
            untrained_baseline=False,
        )
        return replace(recipe, evaluation=settings)


def measure_tokenizer(model: Any, batch: Batch, meters: Meters) -> None:
    """PSNR, code usage and recovery of a tokenizer at its default kept count."""
    encoded = model.encode(batch["image"])
    meters.setdefault("pixels", Psnr()).update(batch["image"], model.decode(encoded))
    meters.setdefault("codes", CodeUsage(model.config.quantizer.vocabulary)).update(encoded.indices)
    if model.config.recovery is not None:
        logits = model.recover(encoded.codes)
        meters.setdefault("recovery", RecoveryAccuracy()).update(logits.argmax(-1), encoded.source.assignment)
