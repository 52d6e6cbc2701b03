"""What a fine-tuned classifier is worth: top-1 over the whole evaluation split."""

from __future__ import annotations

from typing import Any

import torch

from mergevq.finetune import load_fine_tuned
from mergevq.metrics import Mean
from mergevq.metrics.probe import wilson_interval
from mergevq_platform import checkpoints
from mergevq_platform.data import to_unit_range
from mergevq_platform.evaluation.answers import merge
from mergevq_platform.evaluation.subject import Subject, split_batches
from mergevq_platform.pool import Answers
from mergevq_platform.recipe import resolve


class ClassifierEvaluator:
    """One process's classifier (averaged weights) and pictures; answers numbers of batches with their top-1."""

    def __init__(self, subject: Subject) -> None:
        assert subject.checkpoint is not None
        recipe = resolve(subject.recipe)
        self.device = torch.device(subject.device)
        with checkpoints.newest(subject.checkpoint) as directory:
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
    merged: Any = merge(answers(range(batches.num_batches)))
    low, high = wilson_interval(merged.compute()["top1"], merged.count)
    return merged.compute() | {"top1_low": low, "top1_high": high}
