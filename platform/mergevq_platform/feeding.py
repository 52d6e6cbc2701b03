"""What a task trains and validates on: the one seam between the training loop and its data.

A tokenizer and a classifier see pictures; a generator sees codes, from a code set or, with `EncodedPictureFeed`, from pictures
that the frozen tokenizer encodes inside each step. Whatever it is, the loop asks for a stream of micro-batches, turns each into
what the model takes, and now and then for a validation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import nn

from mergevq import keep as kept
from mergevq.config import merged, to_tree
from mergevq.errors import InputError
from mergevq.tokenizer import MergeVQ
from mergevq.training.probe import FrozenFeatures
from mergevq_platform import validation
from mergevq_platform.codes import CodeSet, CodeStream, open_codes, read_manifest
from mergevq_platform.data import Batch, Dataset, EvalBatches, TrainStream, open_dataset, to_unit_range
from mergevq_platform.frozen_tokenizer import FrozenTokenizer, find_tokenizer, mismatch, probed_features
from mergevq_platform.recipe import (
    ClassifierTask,
    FineTuneTask,
    GeneratorTask,
    ProbeTask,
    Recipe,
    RecoveryTask,
    TokenizerTask,
    resolve,
)
from mergevq_platform.recovering import settled


@dataclass(frozen=True)
class Worker:
    """Who this process is among the workers of a run."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Samples(Protocol):
    """A training split: pictures or codes."""

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
    """What the loop asks of a task's data."""

    def stream(self, start_step: int, met: Collection[int] = ()) -> AbstractContextManager[Any]:
        """This rank's micro-batches, a list for each optimizer step from `start_step` on; see `TrainStream` for `met`."""

    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """A micro-batch as the model takes it, on the worker's device."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of `model` on the validation split; every rank takes its share, and all get the merged result."""


def open_samples(recipe: Recipe) -> Dataset | CodeSet:
    """The recipe's training split. Raises `InputError` for one that training cannot read."""
    if isinstance(recipe.task, GeneratorTask) and recipe.task.codes:
        return open_codes(recipe.task.codes, recipe.data.train_split)
    dataset = open_dataset(recipe.data.path, recipe.data.train_split, recipe.data.reading)
    dataset.require_whole_groups()
    return dataset


def open_feed(recipe: Recipe, samples: Dataset | CodeSet, worker: Worker) -> Feed:
    """The feed of a recipe's task. Raises `InputError` for data that do not belong to its model."""
    if isinstance(samples, CodeSet):
        require_maker(recipe, samples.manifest.tokenizer)
        return CodeFeed(recipe, samples, worker)
    if isinstance(recipe.task, GeneratorTask):
        return EncodedPictureFeed(recipe, samples, worker)
    return PictureFeed(recipe, samples, worker)


def draw_keep(recipe: Recipe, step: int) -> int | None:
    """The kept-token count of a step: a function of (seed, step), the same on all ranks; None for classifiers."""
    match recipe.task:
        case TokenizerTask() | GeneratorTask() | RecoveryTask():
            task = _keeping(recipe)
            return kept.draw(task.keep, task.model.grid_tokens, seed=recipe.seed, step=step)
        case ClassifierTask() | FineTuneTask() | ProbeTask():
            return None


def _keeping(recipe: Recipe) -> TokenizerTask | GeneratorTask:
    return recipe.generator if isinstance(recipe.task, GeneratorTask) else recipe.tokenizer


@dataclass(frozen=True)
class PictureFeed:
    """Pictures and their views, in [-1, 1]."""

    recipe: Recipe
    samples: Dataset
    worker: Worker

    def stream(self, start_step: int, met: Collection[int] = ()) -> TrainStream:
        """See `Feed.stream`."""
        recipe = self.recipe
        return TrainStream(
            self.samples,
            recipe.data.views,
            partition=recipe.deal,
            seed=recipe.seed,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            start_step=start_step,
            workers=recipe.data.loader_workers,
            bad_image_limit=recipe.data.bad_picture_limit,
            known_bad=met,
            window_blocks=recipe.data.window_blocks,
        )

    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """See `Feed.batch`."""
        del keep
        batch = to_unit_range(micro_batch, self.worker.device)
        if not self.recipe.channels_last:
            return batch
        return {
            name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in batch.items()
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """See `Feed.validate`."""
        batches = self.validation_batches()

        def share() -> Iterator[Batch]:
            for batch in readable_share(batches, self.worker):
                yield to_unit_range(batch, self.worker.device)

        measure: Callable[[Any, Batch, validation.Meters], None]
        if isinstance(self.recipe.task, RecoveryTask):
            measure = partial(validation.of_recovery, trained_keeps(self.recipe))
        elif isinstance(model, MergeVQ):
            measure = validation.of_tokenizer
        elif self.probed is not None:
            measure = partial(validation.of_probe, self.probed)
        else:
            measure = validation.of_classifier
        return validation.validate(model, share(), measure, self.worker.world_size)

    @cached_property
    def probed(self) -> FrozenFeatures | None:
        """The frozen tokenizer whose features a probe reads."""
        task = self.recipe.task
        return probed_features(task, self.worker.device) if isinstance(task, ProbeTask) else None

    def validation_batches(self) -> EvalBatches:
        """The fixed batches of the first pictures of the evaluation split."""
        settings, data = self.recipe.evaluation, self.recipe.data
        dataset = open_dataset(data.path, data.evaluation_split, data.reading)
        return EvalBatches(dataset, data.views.image_size, settings.batch, limit=settings.validation_images)


def readable_share(batches: EvalBatches, worker: Worker) -> Iterator[Batch]:
    """This worker's batches of a validation, without images that cannot be decoded."""
    for index in batches.shard(worker.rank, worker.world_size):
        if (batch := batches.readable(index)) is not None:
            yield batch


@dataclass(frozen=True)
class EncodedPictureFeed:
    """Codes of pictures that the frozen tokenizer encodes as they come."""

    recipe: Recipe
    samples: Dataset
    worker: Worker

    @cached_property
    def pictures(self) -> PictureFeed:
        """The pictures below."""
        return PictureFeed(self.recipe, self.samples, self.worker)

    @cached_property
    def tokenizer(self) -> MergeVQ:
        """The frozen tokenizer on the worker's device."""
        return tokenizer_of(self.recipe).load(self.worker.device)

    def stream(self, start_step: int, met: Collection[int] = ()) -> TrainStream:
        """See `Feed.stream`."""
        return self.pictures.stream(start_step, met)

    @torch.no_grad()
    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """See `Feed.batch`."""
        moved = to_unit_range(micro_batch, self.worker.device)
        encoded = self.tokenizer.encode(moved["image"], keep, check_values=False)
        return {
            "indices": encoded.indices,
            "assignment": encoded.source.assignment,
            "label": moved["label"],
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """See `Feed.validate`."""
        batches = self.pictures.validation_batches()

        def share() -> Iterator[Batch]:
            for keep in trained_keeps(self.recipe):
                for batch in readable_share(batches, self.worker):
                    yield self.batch(batch, keep)

        return validation.validate(model, share(), validation.of_generator, self.worker.world_size)


@dataclass(frozen=True)
class CodeFeed:
    """Codes of a code set."""

    recipe: Recipe
    samples: CodeSet
    worker: Worker

    def stream(self, start_step: int, met: Collection[int] = ()) -> CodeStream:
        """See `Feed.stream`."""
        del met
        recipe = self.recipe
        return CodeStream(
            self.samples,
            _keeps(recipe),
            partition=recipe.deal,
            seed=recipe.seed,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            start_step=start_step,
            window_blocks=recipe.data.window_blocks,
        )

    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """See `Feed.batch`."""
        del keep
        return {name: value.to(self.worker.device, non_blocking=True) for name, value in micro_batch.items()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """See `Feed.validate`."""
        recipe, worker = self.recipe, self.worker
        codes = open_codes(self.samples.path, recipe.data.evaluation_split)
        size, limit = recipe.evaluation.batch, recipe.evaluation.validation_images

        def batches() -> Iterator[Batch]:
            for keep in trained_keeps(recipe):
                left = limit
                for number in codes.groups_of(keep):
                    if not left:
                        break
                    group = codes.group(number)
                    rows = min(left, len(group.label))
                    for start in range(0, rows, size):
                        chosen = slice(start, min(start + size, rows))
                        yield {
                            name: torch.from_numpy(getattr(group, name)[chosen])
                            for name in ("indices", "assignment", "label")
                        }
                    left -= rows

        def share() -> Iterator[Batch]:
            for index, batch in enumerate(batches()):
                if index % worker.world_size == worker.rank:
                    yield self.batch(batch, None)

        return validation.validate(model, share(), validation.of_generator, worker.world_size)


def _keeps(recipe: Recipe) -> Callable[[int], int]:
    def keep(step: int) -> int:
        drawn = draw_keep(recipe, step)
        assert drawn is not None
        return drawn

    return keep


def trained_keeps(recipe: Recipe) -> tuple[int, ...]:
    """The kept counts that the training of a tokenizer, a generator or a recovery draws from. Raises `InputError` for others."""
    task = _keeping(recipe)
    return task.keep.candidates(task.model.grid_tokens)


def pinned(recipe: Recipe) -> Recipe:
    """A recipe with place and hashes of the tokenizer that it builds on written out, as it is stored; others as they are.

    Raises `InputError` if the tokenizer is not there, or is another than the recipe's hash or the code set says.
    """
    task = recipe.task
    if isinstance(task, RecoveryTask) and task.stage_1 is None:
        return resolve(merged(to_tree(recipe), {"task": settled(task)}))
    if isinstance(task, FineTuneTask | ProbeTask) and task.tokenizer_sha256 is None:
        judged = find_tokenizer(task.tokenizer, key="task.tokenizer")
        told = {"tokenizer": judged.location, "tokenizer_sha256": judged.sha256}
        return resolve(merged(to_tree(recipe), {"task": told}))
    if not isinstance(task, GeneratorTask) or (task.tokenizer and task.tokenizer_sha256):
        return recipe
    made_by = read_manifest(task.codes).tokenizer if task.codes else None
    if task.tokenizer:
        sha256, codes_sha256 = task.tokenizer_sha256, task.tokenizer_codes_sha256
        if sha256 is None and made_by:
            sha256, codes_sha256 = made_by.sha256, made_by.codes_sha256
        found = find_tokenizer(task.tokenizer, sha256=sha256, codes_sha256=codes_sha256, key="task.tokenizer")
    else:
        assert made_by is not None
        found = made_by
    hashes = {"tokenizer_sha256": found.sha256, "tokenizer_codes_sha256": found.codes_sha256}
    if task.tokenizer_sha256:  # whether `found` agrees with it is for `require_maker` to say
        hashes = {}
    return resolve(merged(to_tree(recipe), {"task": {"tokenizer": found.location, **hashes}}))


def tokenizer_of(recipe: Recipe, place: str | None = None) -> FrozenTokenizer:
    """The tokenizer that a generator's recipe was pinned to, looked for at `place` if that is given.

    At `place` may lie one with another Source Recovery. Raises `InputError` if there is none, if its other weights differ, or
    if it does not fit the model.
    """
    task = recipe.generator
    assert task.tokenizer is not None
    found = find_tokenizer(
        place or task.tokenizer,
        sha256=task.tokenizer_sha256,
        codes_sha256=task.tokenizer_codes_sha256,
        key="task.tokenizer" if place is None else "tokenizer",
    )
    require_fit(recipe, found)
    return found


def require_codes(recipe: Recipe) -> None:
    """Raise `InputError` unless a generator's codes can be had: by the right tokenizer, at every kept count to be drawn."""
    if not recipe.generator.codes:
        tokenizer_of(pinned(recipe))
        return
    for split in (recipe.data.train_split, recipe.data.evaluation_split)[
        : 2 if recipe.evaluation.every else 1
    ]:
        codes = open_codes(recipe.generator.codes, split)
        require_maker(recipe, codes.manifest.tokenizer)
        for keep in trained_keeps(recipe):
            codes.groups_of(keep)


def require_maker(recipe: Recipe, made_by: FrozenTokenizer) -> None:
    """Raise `InputError` if the code set was made by another tokenizer than the recipe says, or one that does not fit."""
    task = recipe.generator
    if not made_by.makes_codes_of(task.tokenizer_sha256, task.tokenizer_codes_sha256):
        raise InputError(
            mismatch(f"task.codes: the maker of {task.codes}", made_by.sha256, task.tokenizer_sha256 or "")
        )
    require_fit(recipe, made_by)


def require_fit(recipe: Recipe, tokenizer: FrozenTokenizer) -> None:
    """Raise `InputError` if a generator's codes are not those of the tokenizer: other bits, another grid, another size."""
    model = recipe.generator.model
    if tokenizer.vocabulary.bit_count() != 1:
        raise InputError(
            f"the tokenizer at {tokenizer.location} has {tokenizer.vocabulary} codes, not a power of two: generators take LFQ's codes"
        )
    if 2**model.bits != tokenizer.vocabulary:
        raise InputError(
            f"task.model.bits is {model.bits} (2^{model.bits} codes), but the tokenizer at {tokenizer.location} has "
            f"{tokenizer.vocabulary} codes: set task.model.bits to {tokenizer.vocabulary.bit_length() - 1}"
        )
    if model.grid_tokens != tokenizer.grid_tokens:
        raise InputError(
            f"task.model.grid_tokens is {model.grid_tokens}, but the tokenizer at {tokenizer.location} has a grid of "
            f"{tokenizer.grid_tokens}: make them equal"
        )
    if recipe.data.views.image_size != tokenizer.image_size:
        raise InputError(
            f"data.views.image_size is {recipe.data.views.image_size}, but the tokenizer at {tokenizer.location} works at "
            f"{tokenizer.image_size}: make them equal"
        )
