"""What a fine-tuned classifier or a trained probe is worth: top-1 over the whole evaluation split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from mergevq.finetune import load_fine_tuned
from mergevq.metrics import Mean
from mergevq.metrics.probe import wilson_interval
from mergevq.probe_training import load_probe
from mergevq_platform import checkpoints
from mergevq_platform.data import EvalBatches, to_unit_range
from mergevq_platform.evaluation.answers import merge
from mergevq_platform.evaluation.subject import Subject, split_batches
from mergevq_platform.frozen_tokenizer import probed_features
from mergevq_platform.pool import Answers
from mergevq_platform.recipe import ProbeTask, Recipe, resolve


class ClassifierEvaluator:
    """One process's classifier (averaged weights) and pictures; answers numbers of batches with their top-1."""

    def __init__(self, subject: Subject) -> None:
        assert subject.checkpoint is not None
        recipe = resolve(subject.recipe)
        self.device = torch.device(subject.device)
        with checkpoints.newest(subject.checkpoint, files=checkpoints.MODEL) as directory:
            self.model = load_fine_tuned(directory).to(self.device)
        self.batches = split_batches(recipe, subject.data, recipe.data.evaluation_split)

    @torch.inference_mode()
    def answer(self, index: int) -> Mean:
        """The top-1 of one batch."""
        batch = to_unit_range(self.batches.batch(index), self.device)
        top1 = Mean("top1")
        top1.update(self.model(batch["image"]).argmax(1) == batch["label"])
        return top1


def classify(subject: Subject, answers: Answers) -> dict[str, float]:
    """`top1` (percent) over the evaluation split, with its 95% interval."""
    recipe = resolve(subject.recipe)
    batches = split_batches(recipe, subject.data, recipe.data.evaluation_split)
    return _with_interval(*_top1(answers(range(batches.num_batches))))


class ProbeEvaluator:
    """One process's heads and frozen tokenizer; answers numbers of batches, those of the evaluation split first and
    then those of the training split, with every head's top-1."""

    def __init__(self, subject: Subject) -> None:
        assert subject.checkpoint is not None
        recipe = resolve(subject.recipe)
        assert isinstance(recipe.task, ProbeTask)
        self.device = torch.device(subject.device)
        with checkpoints.newest(subject.checkpoint, files=checkpoints.MODEL) as directory:
            heads, _ = load_probe(directory)
        self.features = probed_features(recipe.task, self.device)
        self.heads = heads.to(self.device)
        self.splits = _probed_splits(recipe, subject)

    @torch.inference_mode()
    def answer(self, index: int) -> list[Mean]:
        """The top-1 of each head on one batch."""
        tested, trained = self.splits
        first = index < tested.num_batches
        batch = tested.batch(index) if first else trained.batch(index - tested.num_batches)
        batch = to_unit_range(batch, self.device)
        right = self.heads(self.features(batch["image"])).argmax(-1) == batch["label"]
        found = []
        for row in right:
            top1 = Mean("top1")
            top1.update(row)
            found.append(top1)
        return found


def _probed_splits(recipe: Recipe, subject: Subject) -> tuple[EvalBatches, EvalBatches]:
    data = recipe.data
    tested, trained = (
        split_batches(recipe, subject.data, split) for split in (data.evaluation_split, data.train_split)
    )
    return tested, trained


def classify_by_probe(subject: Subject, answers: Answers) -> dict[str, float]:
    """`top1` (percent) over the evaluation split with its 95% interval, of the head that does best on training pictures.

    With one head nothing is chosen. `head` counts from 0; `train_top1` is its top-1 on the training pictures, up to
    `evaluation.probe_images` of them, seen as the evaluation split is.
    """
    recipe = resolve(subject.recipe)
    assert isinstance(recipe.task, ProbeTask)
    tested, trained = _probed_splits(recipe, subject)
    heads, head, chosen_by = len(recipe.task.settings.rate_factors), 0, {}
    if heads > 1:
        numbers = range(tested.num_batches, tested.num_batches + trained.num_batches)
        scores = [_top1(parts)[0] for parts in zip(*answers(numbers), strict=True)]
        head = max(range(heads), key=scores.__getitem__)
        chosen_by = {"train_top1": scores[head]}
    found = _top1(heads_found[head] for heads_found in answers(range(tested.num_batches)))
    return _with_interval(*found) | {"head": float(head)} | chosen_by


def _top1(parts: Iterable[Mean]) -> tuple[float, int]:
    merged: Any = merge(parts)
    return merged.compute()["top1"], merged.count


def _with_interval(top1: float, images: int) -> dict[str, float]:
    low, high = wilson_interval(top1, images)
    return {"top1": top1, "top1_low": low, "top1_high": high}
