"""The evaluation of classifiers, fine-tuned encoders and heads of probes: top-1 over the whole evaluation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mergevq
from mergevq.metrics import Mean
from mergevq.metrics.labelled import wilson_interval
from mergevq.training.finetune import load_fine_tuned
from mergevq.training.probe import load_probe
from mergevq_platform.data import EvalBatches, to_unit_range
from mergevq_platform.data.parquet.background import DROPPED
from mergevq_platform.data.views import evaluation_view_text
from mergevq_platform.evaluation.classifier_report import ClassifierReport
from mergevq_platform.evaluation.passes import Passes, jobs_of_batches
from mergevq_platform.evaluation.results import Mergeable, merge
from mergevq_platform.evaluation.spec import EvaluationSpec, batches_key, identity, split_batches
from mergevq_platform.evaluation.worker import WorkerProcess
from mergevq_platform.recipe import Recipe, ResolvedRecipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.tasks.task import task_of

BATCHES_PER_JOB = 1  # at least


class ClassifierJob(NamedTuple):
    """Some batches of a split."""

    split: str
    batches: tuple[int, ...]

    def on_batches(self, process: WorkerProcess) -> ClassifierResult:
        """Right answers of the batches."""
        return process.worker(ClassifierWorker).answer(self)


@dataclass
class ClassifierResult(Mergeable):
    """Right answers of each head on labelled images, with the numbers of images without a label and of undecodable ones."""

    top1: dict[str, Mean]  # by the head's number
    unlabelled: int = 0
    bad: int = 0


class ClassifierWorker:
    """One process's classifier (averaged weights), or heads over a frozen tokenizer, and images."""

    def __init__(self, spec: EvaluationSpec) -> None:
        self.spec = spec
        self.recipe = spec.recipe
        self.device = torch.device(spec.device)

    @cached_property
    def logits(self) -> Callable[[Tensor], Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> logits (heads, B, classes)."""
        assert self.spec.checkpoint is not None
        features = task_of(self.recipe).features(self.device)
        with checkpoints.newest(self.spec.checkpoint, files=checkpoints.MODEL) as directory:
            if features is None:
                model = load_fine_tuned(directory).to(self.device)
                return lambda images: model(images)[None]
            heads, _ = load_probe(directory)
        heads = heads.to(self.device)
        return lambda images: heads(features(images))

    @torch.inference_mode()
    def answer(self, job: ClassifierJob) -> ClassifierResult:
        """Do one job."""
        batches = split_batches(self.recipe, self.spec.data, job.split)
        return merge(self._batch(batches, index) for index in job.batches)

    def _batch(self, batches: EvalBatches, index: int) -> ClassifierResult:
        images = min(batches.batch_size, batches.images - index * batches.batch_size)
        found = ClassifierResult(
            {str(head): Mean("top1") for head in range(num_heads(self.recipe))}, bad=images
        )
        batch = batches.readable(index)
        if batch is None:
            return found
        batch = to_unit_range(batch, self.device)
        labelled = batch["label"] >= 0
        found.unlabelled, found.bad = int((~labelled).sum()), images - len(labelled)
        answers = self.logits(batch["image"]).argmax(-1)
        for top1, right in zip(found.top1.values(), answers == batch["label"], strict=True):
            top1.update(right[labelled])
        return found


def num_heads(recipe: Recipe) -> int:
    """The number of heads that are trained beside each other: a probe has one for each rate."""
    return len(task_of(recipe).rate_factors or (1.0,))


@dataclass
class ClassifierEvaluator:
    """The evaluation of a fine-tuned classifier or of a probe's heads, whose passes workers do.

    Of several heads the one that does best on training images is taken: `head` counts from 0, `train_top1` is its top-1 on up
    to `evaluation.probe_images` training images, seen as the evaluation split is.
    """

    spec: EvaluationSpec
    passes: Passes
    step: int | None = None
    say: Callable[[str], None] = lambda text: None

    @property
    def recipe(self) -> ResolvedRecipe:
        """The recipe whose data and protocol are used."""
        return self.spec.recipe

    def report(self, run: str) -> ClassifierReport:
        """`top1` over the labelled images of the evaluation split, without any nothing; `unlabelled` and `undecodable` images
        are counted where there are some."""
        data, heads = self.recipe.data, num_heads(self.recipe)
        head, chosen_by = 0, {}
        if heads > 1:
            learned = self._pass(data.train_split)
            scores = [learned.top1[str(number)].compute()["top1"] for number in range(heads)]
            if learned.top1["0"].count:
                head = max(range(heads), key=scores.__getitem__)
                chosen_by = {"train_top1": scores[head]}
        row = _of_head(self._pass(data.evaluation_split), head)
        if task_of(self.recipe).rate_factors is not None:
            row |= {"head": float(head)} | chosen_by
        return ClassifierReport(run, [row], self._protocol())

    def write_figures(self, report: ClassifierReport, folder: Path) -> dict[str, Path]:
        """None: the report is one row."""
        return {}

    def _pass(self, split: str) -> ClassifierResult:
        batches = split_batches(self.recipe, self.spec.data, split)
        jobs = [
            ClassifierJob(split, numbers) for numbers in jobs_of_batches(batches.num_batches, BATCHES_PER_JOB)
        ]
        key = {"kind": "classifier", **batches_key(batches), **identity(self.spec)}
        if (sha256 := task_of(self.recipe).features_sha256()) is not None:
            key["tokenizer"] = sha256
        return self.passes.result(key, jobs)

    def _protocol(self) -> dict[str, Any]:
        recipe, task = self.recipe, task_of(self.recipe)
        batches = split_batches(recipe, self.spec.data, recipe.data.evaluation_split)
        protocol: dict[str, Any] = {
            "task": task.kind,
            "images": batches.images,
            "split": recipe.data.evaluation_split,
            "data": self.spec.data,
            "data_fingerprint": batches.dataset.fingerprint,
            "background": batches.dataset.background or DROPPED,
            "preprocessing": evaluation_view_text(recipe.data.views.image_size),
            "step": self.step,
            "checkpoint": self.spec.checkpoint,
            **identity(self.spec),
            "batch": recipe.evaluation.batch,
            "mergevq": mergevq.__version__,
        }
        if task.rate_factors is not None:
            rates = [recipe.optimizer.learning_rate * factor for factor in task.rate_factors]
            protocol["learning_rates"] = rates
        return protocol


def _of_head(found: ClassifierResult, head: int) -> dict[str, float]:
    top1 = found.top1[str(head)]
    left_out = {"unlabelled": float(found.unlabelled), "undecodable": float(found.bad)}
    values = {name: count for name, count in left_out.items() if count}
    if not top1.count:
        return values
    percent = top1.compute()["top1"]
    low, high = wilson_interval(percent, top1.count)
    return {"top1": percent, "top1_low": low, "top1_high": high} | values
