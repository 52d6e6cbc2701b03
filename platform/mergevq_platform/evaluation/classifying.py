"""What a fine-tuned classifier or a trained probe is worth: top-1 over the whole evaluation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergevq.metrics import Mean
from mergevq.metrics.labelled import wilson_interval
from mergevq.training.finetune import load_fine_tuned
from mergevq.training.probe import load_probe
from mergevq_platform.data import EvalBatches, to_unit_range
from mergevq_platform.distributed.ordered_map import Answers
from mergevq_platform.evaluation.answers import merge
from mergevq_platform.evaluation.subject import Subject, split_batches
from mergevq_platform.recipe import Recipe, parse_resolved
from mergevq_platform.storage import checkpoints
from mergevq_platform.tasks.task import task_of


@dataclass
class Answered:
    """The top-1 of heads on labelled images, and how many images had no label or could not be decoded."""

    top1: list[Mean]
    unlabelled: int = 0
    bad: int = 0

    def merge(self, other: Answered) -> Answered:
        """Of both sets of images."""
        top1 = [mine.merge(theirs) for mine, theirs in zip(self.top1, other.top1, strict=True)]
        return Answered(top1, self.unlabelled + other.unlabelled, self.bad + other.bad)


def answered(
    batches: EvalBatches, index: int, device: torch.device, heads: int, logits: Callable[[Tensor], Tensor]
) -> Answered:
    """What heads say of one batch; `logits` of images (B, 3, H, W) in [-1, 1] are (heads, B, classes)."""
    images = min(batches.batch_size, batches.images - index * batches.batch_size)
    found = Answered([Mean("top1") for _ in range(heads)], bad=images)
    batch = batches.readable(index)
    if batch is None:
        return found
    batch = to_unit_range(batch, device)
    labelled = batch["label"] >= 0
    found.unlabelled, found.bad = int((~labelled).sum()), images - len(labelled)
    for top1, right in zip(found.top1, logits(batch["image"]).argmax(-1) == batch["label"], strict=True):
        top1.update(right[labelled])
    return found


class ClassifierEvaluator:
    """One process's classifier (averaged weights) and pictures; answers numbers of batches with their top-1."""

    def __init__(self, subject: Subject) -> None:
        assert subject.checkpoint is not None
        recipe = parse_resolved(subject.recipe)
        self.device = torch.device(subject.device)
        with checkpoints.newest(subject.checkpoint, files=checkpoints.MODEL) as directory:
            self.model = load_fine_tuned(directory).to(self.device)
        self.batches = split_batches(recipe, subject.data, recipe.data.evaluation_split)

    @torch.inference_mode()
    def answer(self, index: int) -> Answered:
        """The top-1 of one batch."""
        return answered(self.batches, index, self.device, 1, lambda images: self.model(images)[None])


def classify(subject: Subject, answers: Answers) -> dict[str, float]:
    """`top1` (percent) over the labelled images of the evaluation split, with its 95% interval; without any, nothing.

    `unlabelled` and `undecodable` images are counted where there are some.
    """
    recipe = parse_resolved(subject.recipe)
    batches = split_batches(recipe, subject.data, recipe.data.evaluation_split)
    return _of_head(merge(answers(range(batches.num_batches))), 0)


class ProbeEvaluator:
    """One process's heads and frozen tokenizer; answers numbers of batches, those of the evaluation split first and
    then those of the training split, with every head's top-1."""

    def __init__(self, subject: Subject) -> None:
        assert subject.checkpoint is not None
        recipe = parse_resolved(subject.recipe)
        self.device = torch.device(subject.device)
        with checkpoints.newest(subject.checkpoint, files=checkpoints.MODEL) as directory:
            heads, _ = load_probe(directory)
        self.features = task_of(recipe).features(self.device)
        self.heads = heads.to(self.device)
        self.splits = _probed_splits(recipe, subject)

    @torch.inference_mode()
    def answer(self, index: int) -> Answered:
        """The top-1 of each head on one batch."""
        tested, trained = self.splits
        batches = tested if index < tested.num_batches else trained
        number = index if batches is tested else index - tested.num_batches
        heads = self.heads.heads
        return answered(batches, number, self.device, heads, lambda images: self.heads(self.features(images)))


def _probed_splits(recipe: Recipe, subject: Subject) -> tuple[EvalBatches, EvalBatches]:
    data = recipe.data
    tested, trained = (
        split_batches(recipe, subject.data, split) for split in (data.evaluation_split, data.train_split)
    )
    return tested, trained


def classify_by_probe(subject: Subject, answers: Answers) -> dict[str, float]:
    """`top1` (percent) over the evaluation split with its 95% interval, of the head that does best on training pictures.

    With one head nothing is chosen. `head` counts from 0; `train_top1` is its top-1 on the training pictures, up to
    `evaluation.probe_images` of them, seen as the evaluation split is. What else: see `classify`.
    """
    recipe = parse_resolved(subject.recipe)
    tested, trained = _probed_splits(recipe, subject)
    heads, head, chosen_by = task_of(recipe).heads, 0, {}
    if heads > 1:
        numbers = range(tested.num_batches, tested.num_batches + trained.num_batches)
        learned: Any = merge(answers(numbers))
        scores = [top1.compute()["top1"] for top1 in learned.top1]
        if learned.top1[0].count:
            head = max(range(heads), key=scores.__getitem__)
            chosen_by = {"train_top1": scores[head]}
    found = _of_head(merge(answers(range(tested.num_batches))), head)
    return found | {"head": float(head)} | chosen_by


def _of_head(found: Answered, head: int) -> dict[str, float]:
    top1 = found.top1[head]
    left_out = {"unlabelled": float(found.unlabelled), "undecodable": float(found.bad)}
    values = {name: count for name, count in left_out.items() if count}
    if not top1.count:
        return values
    percent = top1.compute()["top1"]
    low, high = wilson_interval(percent, top1.count)
    return {"top1": percent, "top1_low": low, "top1_high": high} | values
