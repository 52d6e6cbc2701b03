"""Stage 2: train a generator on the codes of a frozen tokenizer, and measure what it generates over guidance scales."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Self

import torch

from mergevq.config import config
from mergevq.errors import InputError
from mergevq.generation import build_generator, is_ragged
from mergevq.training.generator import GeneratorTraining
from mergevq.training.protocol import Training
from mergevq_platform.codes import CodeSet, open_codes, read_manifest
from mergevq_platform.codes.fitting import histogram_of, require_counts, with_counts_of
from mergevq_platform.codes.manifest import CodeManifest
from mergevq_platform.codes.tokenizer import require_maker, tokenizer_of
from mergevq_platform.data import Batch, Dataset, open_dataset
from mergevq_platform.evaluation.generator import GeneratorEvaluator
from mergevq_platform.evaluation.generator_worker import GeneratorWorker
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import (
    EvaluationConfig,
    GeneratorTaskConfig,
    Recipe,
    ResolvedRecipe,
    locate,
)
from mergevq_platform.sampling.pipeline import open_sampling
from mergevq_platform.storage.tokenizer_ref import TokenizerRef, find_tokenizer
from mergevq_platform.tasks.classes import require_classes
from mergevq_platform.tasks.code_feed import CodeFeed, EncodedImageFeed
from mergevq_platform.tasks.image_feed import open_images
from mergevq_platform.tasks.measures import require_extractor
from mergevq_platform.tasks.task import FewImages, Task, Worker


@config
class GeneratorTask(GeneratorTaskConfig, Task):
    """Train a generator on the codes of a frozen tokenizer (stage 2).

    `codes` is a code set (`mergevq tokenize`); without one, images of `data.path` are encoded inside each step.
    """

    def pin(self) -> Self:
        """See `TaskConfig.pin`: the tokenizer, which must be the one that made the codes, and what these say of kept counts."""
        pinned = self.tokenizer is not None and self.tokenizer_sha256 is not None
        counted = self.codes is None or (is_ragged(self.model) and self.budget is not None)
        manifest: CodeManifest | None = None
        if self.codes is not None and not (pinned and counted):
            # A recipe that is pinned needs no code set to be resolved: whoever opens it says what is wrong with it.
            with suppress(InputError) if pinned else nullcontext():
                manifest = read_manifest(self.codes)
        found = self if pinned else self._with_tokenizer(None if manifest is None else manifest.tokenizer)
        return found if counted or manifest is None else with_counts_of(found, manifest)

    def _with_tokenizer(self, made_by: TokenizerRef | None) -> Self:
        if self.tokenizer:
            sha256, codes_sha256 = self.tokenizer_sha256, self.tokenizer_codes_sha256
            if sha256 is None and made_by:
                sha256, codes_sha256 = made_by.sha256, made_by.codes_sha256
            found = find_tokenizer(
                self.tokenizer, sha256=sha256, codes_sha256=codes_sha256, key="task.tokenizer"
            )
        else:
            assert made_by is not None
            found = made_by
        if self.tokenizer_sha256:  # whether `found` agrees with it is for `require_maker` to say
            return replace(self, tokenizer=found.location)
        return replace(
            self,
            tokenizer=found.location,
            tokenizer_sha256=found.sha256,
            tokenizer_codes_sha256=found.codes_sha256,
        )

    @property
    def reads_images(self) -> bool:
        """Whether there is no code set."""
        return self.codes is None

    def open_data(self, recipe: Recipe) -> Dataset | CodeSet:
        """See `Task.open_data`."""
        return open_codes(self.codes, recipe.data.train_split) if self.codes else open_images(recipe)

    def build(self, recipe: Recipe, samples: Dataset | CodeSet) -> Training:
        """See `Task.build`."""
        require_classes(samples, self.model.classes, "a class-conditional generator")
        counted = histogram_of(samples, self) if isinstance(samples, CodeSet) else None
        return GeneratorTraining(build_generator(self.model), self.losses, counted)

    def open_feed(
        self, recipe: Recipe, samples: Dataset | CodeSet, worker: Worker
    ) -> CodeFeed | EncodedImageFeed:
        """See `Task.open_feed`."""
        if isinstance(samples, CodeSet):
            require_maker(recipe, samples.manifest.tokenizer)
            require_counts(self, samples)
            return CodeFeed(recipe, samples, worker)
        return EncodedImageFeed(recipe, samples, worker)

    def require_data(self, recipe: Recipe) -> None:
        """See `Task.require_data`: codes of the right tokenizer, at every kept count to be drawn."""
        if not self.codes:
            tokenizer_of(recipe)
            return
        splits = (recipe.data.train_split, recipe.data.evaluation_split)
        for split in splits if recipe.evaluation.every else splits[:1]:
            codes = open_codes(self.codes, split)
            require_maker(recipe, codes.manifest.tokenizer)
            require_counts(self, codes)

    def require_measures(self, recipe: Recipe) -> None:
        """See `Task.require_measures`: the images that generated ones are compared with, and the extractor."""
        open_dataset(recipe.data.path, recipe.data.train_split, recipe.data.reading)
        require_extractor(recipe)

    @property
    def evaluated(self) -> bool:
        """True."""
        return True

    def measures(self, settings: EvaluationConfig) -> EvaluationConfig:
        """See `Task.measures`: the extractor."""
        return replace(settings, lpips=None)

    def evaluator(
        self, recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
    ) -> GeneratorEvaluator:
        """See `Task.evaluator`."""
        assert checkpoint is not None
        spec = open_sampling(
            checkpoint,
            device=options.device,
            keep=options.keeps[0] if options.keeps else None,
            budget=options.budgets[0] if options.budgets else None,
            steps=options.steps,
            seed=options.seed,
            tokenizer=options.tokenizer,
        )
        measured = recipe
        if options.data:
            measured = replace(measured, data=replace(recipe.data, path=options.data))
        if options.images is not None:
            settings = replace(self.generation, images=options.images)
            measured = replace(measured, task=replace(self, generation=settings))
        spec = replace(spec, recipe=locate(measured))
        passes = Passes(answers(GeneratorWorker, spec, options.workers), options.cache)
        scales = options.scales or recipe.generator.generation.scales
        distribution = "distribution" in options.suites
        return GeneratorEvaluator(spec, passes, scales, say=options.say, distribution=distribution)

    @property
    def curves(self) -> bool:
        """True."""
        return True

    def on_fewer_images(self, recipe: ResolvedRecipe, few: FewImages) -> ResolvedRecipe:
        """See `Task.on_fewer_images`."""
        settings = replace(
            self.generation,
            images=min(self.generation.images, few.images),
            scales=few.scales or self.generation.scales,
            baselines=False,
        )
        evaluation = replace(
            recipe.evaluation,
            keeps=few.keeps or recipe.evaluation.keeps,
            images=min(few.images, recipe.evaluation.images or few.images),
            probe_images=min(few.probe_images, recipe.evaluation.probe_images or few.probe_images),
            untrained_baseline=False,
        )
        return replace(recipe, evaluation=evaluation, task=replace(self, generation=settings))

    def classes(self) -> int:
        """The number of classes of the model."""
        return self.model.classes

    def random_batch(self, rows: int, keep: int | None, seed: int) -> Batch:
        """See `Task.random_batch`: codes, each with a cell."""
        assert keep is not None
        random, cells = torch.Generator().manual_seed(seed), self.model.grid_tokens
        every = torch.arange(cells) % keep
        order = torch.rand(rows, cells, generator=random).argsort(1)
        return {
            "indices": torch.randint(2**self.model.bits, (rows, keep), generator=random),
            "assignment": every.expand(rows, cells).gather(1, order),
            "label": torch.randint(self.model.classes, (rows,), generator=random),
        }
