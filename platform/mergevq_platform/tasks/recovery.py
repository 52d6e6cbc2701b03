"""Fine-tune a tokenizer's Source Recovery after stage 2, on its own codes or on those that a generator writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from mergevq.config import config, parse
from mergevq.errors import InputError
from mergevq.generation import Generator
from mergevq.keep import KeepDistributionConfig, UniformKeepConfig
from mergevq.metrics import Mean
from mergevq.serialization import WEIGHTS, load_generator, read_config
from mergevq.training.protocol import Training
from mergevq.training.recovery import RecoveryTraining, RecoveryTrainingConfig
from mergevq_platform.data import Batch, Dataset
from mergevq_platform.evaluation.curve import Curve, tuned_curve
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.tokenizer import TokenizerEvaluator
from mergevq_platform.recipe import (
    EvaluationConfig,
    Recipe,
    ResolvedRecipe,
    TokenizerTaskConfig,
    placeholder_task,
    trainable_keeps,
)
from mergevq_platform.recipe.paths import RunPath
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.tokenizer_ref import TokenizerRef, find_tokenizer, mismatch
from mergevq_platform.tasks.classes import require_size
from mergevq_platform.tasks.image_feed import ImageFeed, open_images
from mergevq_platform.tasks.task import Worker
from mergevq_platform.tasks.tokenizer_evaluation import TokenizerCheckpointTask
from mergevq_platform.tasks.validation import Meters


@config
class RecoveryTask(TokenizerCheckpointTask):
    """Fine-tune a tokenizer's Source Recovery after stage 2, all else frozen (paper, A.1).

    `stage_1`, the task that the tokenizer was trained by, is recorded when the run begins, as are the hashes: a checkpoint of
    this task is a complete tokenizer, and is evaluated as one.
    """

    kind: Literal["recovery"] = "recovery"
    tokenizer: (
        RunPath  # a checkpoint, a run's directory, a URI of either, an imported tokenizer, or hf://owner/name
    )
    tokenizer_sha256: str | None = None
    generator: RunPath | None = None  # a random-order one of its codes, as above; none: codes of images alone
    generator_sha256: str | None = None
    keep: KeepDistributionConfig | None = (
        None  # none: as the generator or, without one, the tokenizer was trained
    )
    settings: RecoveryTrainingConfig = Field(default_factory=RecoveryTrainingConfig)
    stage_1: TokenizerTaskConfig | None = None

    def pin(self) -> Self:
        """See `TaskConfig.pin`: tokenizer and generator, the kept counts, and the tokenizer's own task.

        Raises `InputError` for what does not belong together, too.
        """
        if self.stage_1 is not None:
            return self
        found = find_tokenizer(self.tokenizer, sha256=self.tokenizer_sha256, key="task.tokenizer")
        stage_1 = _tokenizer_task(found)
        if self.generator is None and self.keep is None and checkpoints.is_bare(found.location):
            raise InputError(f"{found.location} is a tokenizer without a recipe: give task.keep")
        resolved = replace(
            self, tokenizer=found.location, tokenizer_sha256=found.sha256, keep=self.keep or stage_1.keep
        )
        if self.generator is not None:
            resolved = replace(resolved, **self._pin_generator(self.generator, found))
        return replace(resolved, stage_1=stage_1)

    def _pin_generator(self, place: str, tokenizer: TokenizerRef) -> dict[str, Any]:
        with checkpoints.newest(place, files=checkpoints.MODEL) as directory:
            made, sha256 = checkpoints.recipe_of(directory).generator, self._checked_sha256(directory)
            location = checkpoints.at_step(place, checkpoints.about(directory)["step"])
        if not tokenizer.makes_codes_of(made.tokenizer_sha256, made.tokenizer_codes_sha256):
            raise InputError(
                mismatch(
                    f"task.generator: {location} writes codes of another tokenizer: the one at {tokenizer.location}",
                    tokenizer.sha256,
                    made.tokenizer_sha256 or "",
                )
            )
        # Of a generator whose images keep different counts, each of these as often.
        keep = self.keep or made.keep or UniformKeepConfig(counts=made.kept_counts())
        candidates = keep.candidates(made.model.grid_tokens)
        if unknown := [count for count in candidates if count not in trainable_keeps(made.model)]:
            raise InputError(
                f"task.keep: the generator at {location} was not trained at {', '.join(map(str, unknown))} kept tokens: "
                "leave task.keep out to take its own"
            )
        return {"generator": location, "generator_sha256": sha256, "keep": keep}

    def check(self, evaluation: EvaluationConfig) -> None:
        """See `TaskConfig.check`."""
        if (tokenizer := self.as_tokenizer) is not None:
            tokenizer.check(evaluation)

    @property
    def as_tokenizer(self) -> TokenizerTaskConfig | None:
        """The tokenizer's task, at the kept counts that recovery is tuned at; None before the recipe is resolved."""
        return self.stage_1 and replace(self.stage_1, keep=self.keep or self.stage_1.keep)

    def keep_distribution(self) -> tuple[KeepDistributionConfig, int] | None:
        """See `TaskConfig.keep_distribution`."""
        tokenizer = self.as_tokenizer
        return None if tokenizer is None else tokenizer.keep_distribution()

    def tags(self) -> dict[str, str]:
        """The tags of the tokenizer, and its hash."""
        found = self.as_tokenizer.tags() if self.as_tokenizer else {}
        return found | ({"mergevq.tokenizer": self.tokenizer_sha256} if self.tokenizer_sha256 else {})

    def parameters(self) -> dict[str, Any]:
        """The parameters of the tokenizer."""
        return self.as_tokenizer.parameters() if self.as_tokenizer else {}

    def open_data(self, recipe: Recipe) -> Dataset:
        """See `Task.open_data`."""
        return open_images(recipe)

    def build(self, recipe: Recipe, samples: Dataset) -> Training:
        """See `Task.build`."""
        found = find_tokenizer(self.tokenizer, sha256=self.tokenizer_sha256, key="task.tokenizer")
        tokenizer, generator = found.load(), self._open_generator()
        require_size(recipe, tokenizer, self.tokenizer)
        if generator is not None and generator.config.classes != samples.num_classes:
            raise InputError(
                f"task.generator: {self.generator} knows {generator.config.classes} classes but {samples.path} has "
                f"{samples.num_classes}: give the images that it learnt from"
            )
        return RecoveryTraining(tokenizer, self.settings, generator)

    def _open_generator(self) -> Generator | None:
        if self.generator is None:
            return None
        with checkpoints.newest(self.generator, files=checkpoints.MODEL) as directory:
            self._checked_sha256(directory)
            return load_generator(directory)

    def _checked_sha256(self, directory: Path) -> str:
        found = checkpoints.about(directory)["sha256"][WEIGHTS]
        if self.generator_sha256 not in (None, found):
            raise InputError(
                f"task.generator: {self.generator} has weights {found[:12]}…, but {(self.generator_sha256 or '')[:12]}… is "
                "recorded: name the generator that the run began with"
            )
        return found

    def open_feed(self, recipe: Recipe, samples: Dataset, worker: Worker) -> ImageFeed:
        """See `Task.open_feed`."""
        return ImageFeed(recipe, samples, worker, partial(measure_recovery, self.kept_counts()))

    def after_training(
        self, recipe: ResolvedRecipe, checkpoint: str, options: EvaluationOptions, run: str
    ) -> tuple[Curve, TokenizerEvaluator]:
        """See `Task.after_training`: reconstruction before and after, the rest being as before."""
        keeps = recipe.evaluation.keeps or self.kept_counts()
        options = replace(options, keeps=keeps, suites=("reconstruction",))
        curves: list[Curve] = []
        for what, place in (("before", self.tokenizer), ("after", checkpoint)):
            options.say(f"{what} fine-tuning:")
            evaluator = self.curve_evaluator(recipe, place, options)
            curves.append(evaluator.report(run))
        return tuned_curve(*curves), evaluator

    def classes(self) -> int:
        """The number of classes of the generator, if there is one."""
        if self.generator is None:
            return 0
        with checkpoints.newest(self.generator, files=checkpoints.RECIPE) as directory:
            return checkpoints.recipe_of(directory).generator.model.classes


def measure_recovery(keeps: Sequence[int], model: Any, batch: Batch, meters: Meters) -> None:
    """`recovery_accuracy_K` (percent of cells) of a tokenizer at each kept count K, as `RecoveryAccuracy` has it."""
    for keep in keeps:
        encoded = model.encode(batch["image"], keep)
        name = f"recovery_accuracy_{keep}"
        right = model.recover(encoded.codes).argmax(-1) == encoded.source.assignment
        meters.setdefault(name, Mean(name)).update(right)


def _tokenizer_task(found: TokenizerRef) -> TokenizerTaskConfig:
    with checkpoints.weights(found.location, files=("config.json", "recipe.yaml")) as directory:
        if checkpoints.is_bare(found.location):
            return parse(TokenizerTaskConfig, placeholder_task(read_config(directory)))
        return checkpoints.recipe_of(directory).tokenizer
