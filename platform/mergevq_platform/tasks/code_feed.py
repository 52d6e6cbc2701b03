"""Batches of codes, from a code set or from images that the frozen tokenizer encodes inside each step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mergevq.metrics import Mean
from mergevq.ragged import NO_TOKEN
from mergevq.tokenizer import MergeVQ
from mergevq_platform.codes import Codes, CodeSet, CodeStream, open_codes
from mergevq_platform.codes.stream import batch_of
from mergevq_platform.codes.tokenizer import tokenizer_of
from mergevq_platform.data import Batch, Dataset, TrainStream, to_unit_range
from mergevq_platform.recipe import Recipe
from mergevq_platform.tasks.image_feed import ImageFeed, validation_share
from mergevq_platform.tasks.task import Worker
from mergevq_platform.tasks.validation import Meters, validate


@dataclass(frozen=True)
class EncodedImageFeed:
    """Codes of images that the frozen tokenizer encodes as they come."""

    recipe: Recipe
    samples: Dataset
    worker: Worker

    @cached_property
    def encoder(self) -> MergeVQ:
        """The frozen tokenizer on the worker's device."""
        return tokenizer_of(self.recipe).load(self.worker.device)

    def stream(self, start_step: int, known_bad: Collection[int] = ()) -> TrainStream:
        """See `Feed.stream`."""
        return ImageFeed(self.recipe, self.samples, self.worker, measure_generator).stream(
            start_step, known_bad
        )

    @torch.no_grad()
    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """See `Feed.batch`."""
        moved = to_unit_range(micro_batch, self.worker.device)
        encoded = self.encoder.encode(moved["image"], keep, check_values=False)
        return {
            "indices": encoded.indices,
            "assignment": encoded.source.assignment,
            "label": moved["label"],
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """See `Feed.validate`."""
        batches = (
            self.batch(batch, keep)
            for keep in self.recipe.task.kept_counts()
            for batch in validation_share(self.recipe, self.worker)
        )
        return validate(model, batches, measure_generator, self.worker.world_size)


@dataclass(frozen=True)
class CodeFeed:
    """Codes of a code set."""

    recipe: Recipe
    samples: CodeSet
    worker: Worker

    @property
    def encoder(self) -> nn.Module | None:
        """None: codes need no encoder."""
        return None

    def stream(self, start_step: int, known_bad: Collection[int] = ()) -> CodeStream:
        """See `Feed.stream`."""
        del known_bad
        recipe = self.recipe
        return CodeStream(
            self.samples,
            None if self.samples.ragged else _keep_of_step(recipe),
            partition=recipe.batch_partition,
            seed=recipe.seed,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            start_step=start_step,
            window_blocks=recipe.data.window_blocks,
        )

    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """See `Feed.batch`. Where all images happen to keep as many, it is the batch of one count.

        Compiled models take batches of one shape: padded to the most that any image keeps.
        """
        del keep
        count, indices = micro_batch.get("count"), micro_batch["indices"]
        if count is not None and self.recipe.compile:
            missing = max(self.samples.manifest.keeps) - indices.shape[1]
            micro_batch = {**micro_batch, "indices": F.pad(indices, (0, missing), value=NO_TOKEN)}
        elif count is not None and bool((count == count[0]).all()):
            micro_batch = {name: value for name, value in micro_batch.items() if name != "count"}
        return {name: value.to(self.worker.device, non_blocking=True) for name, value in micro_batch.items()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """See `Feed.validate`."""
        worker = self.worker
        share = (
            self.batch(batch, None)
            for index, batch in enumerate(self._validation_batches())
            if index % worker.world_size == worker.rank
        )
        return validate(model, share, measure_generator, worker.world_size)

    def _validation_batches(self) -> Iterator[Batch]:
        recipe = self.recipe
        codes = open_codes(self.samples.path, recipe.data.evaluation_split)
        size, limit = recipe.evaluation.batch, recipe.evaluation.validation_images
        passes = (
            [list(range(len(codes.places)))]
            if codes.ragged
            else [codes.groups_of(keep) for keep in recipe.task.kept_counts()]
        )
        for groups in passes:
            left = limit
            for number in groups:
                if not left:
                    break
                group = codes.group(number)
                rows = min(left, len(group.label))
                for start in range(0, rows, size):
                    chosen = slice(start, min(start + size, rows))
                    some = Codes(*(array[chosen] for array in group))
                    some = some._replace(indices=some.indices[:, : some.keep.max()])
                    yield batch_of(some, ragged=codes.ragged)
                left -= rows


def _keep_of_step(recipe: Recipe) -> Callable[[int], int]:
    def keep(step: int) -> int:
        drawn = recipe.task.draw_keep(recipe.seed, step)
        assert drawn is not None
        return drawn

    return keep


def measure_generator(model: Any, batch: Batch, meters: Meters) -> None:
    """Loss (nats a code, without smoothing) and accuracy of a generator's codes, each predicted from the true ones before it."""
    keep = batch.get("count", batch["indices"].shape[1])
    order = None
    if model.config.kind == "random_order":  # one order for all validations
        chance = torch.rand(batch["indices"].shape, generator=torch.Generator().manual_seed(0))
        present = batch["indices"].cpu() != NO_TOKEN
        order = chance.masked_fill(~present, torch.inf).argsort(1).to(batch["indices"].device)
    prediction = model(batch["indices"], batch["assignment"], batch["label"], keep, order)
    parts = model.tokens.split(prediction.targets)
    losses, right = torch.zeros(()), torch.ones((), dtype=torch.bool)
    for place, logits in enumerate(prediction.logits):
        part = parts[..., place]
        losses = losses + F.cross_entropy(logits.float().movedim(-1, 1), part, reduction="none").cpu()
        right = right & (logits.argmax(-1) == part).cpu()
    if prediction.present is not None:
        here = prediction.present.cpu()
        losses, right = losses[here], right[here]
    meters.setdefault("loss", Mean("token_loss")).update(losses)
    meters.setdefault("right", Mean("token_accuracy")).update(right)
