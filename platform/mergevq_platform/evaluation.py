"""Measuring the curve: for every kept count, what the tokenizer reconstructs and what its features know.

The work is cut into jobs of whole evaluation batches (batch b is always samples [bB, (b+1)B)). A job's answer is a set
of accumulators or features; the driver merges them in job order, so that any number of workers gives one result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import mergevq
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq.keep import reachable
from mergevq.metrics import (
    CodeUsage,
    FeatureStatistics,
    Psnr,
    RecoveryAccuracy,
    Ssim,
    extractor,
    frechet_distance,
    knn_classify,
    linear_probe,
)
from mergevq.tokenizer import MergeVQ
from mergevq_platform import checkpoints, loop
from mergevq_platform.curves import Curve, six_counts
from mergevq_platform.data import Dataset, EvalBatches, open_dataset, to_unit_range
from mergevq_platform.recipe import Recipe, resolve

BATCHES_PER_JOB = 4
FEATURES = ("cls", "mean")
CAVEATS = {
    "stand_in": "The alignment teacher is a stand-in that saw these labels: the probe measures distillation, not self-supervision.",
    "supervised": "Training used the labels: the probe measures supervised features, not self-supervision.",
}


class Job(NamedTuple):
    """A piece of work: some batches of a split at one kept count."""

    kind: Literal["reference", "reconstruction", "features", "untrained"]
    split: str
    keep: int
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """What is measured, in a form that travels to workers."""

    checkpoint: str  # a directory or URI that holds one checkpoint
    recipe: dict[str, Any]
    data: str
    device: Literal["cpu", "cuda"]


@dataclass
class Reconstruction:
    """Accumulators of one kept count over the evaluation split."""

    true: FeatureStatistics = field(default_factory=FeatureStatistics)
    recovered: FeatureStatistics = field(default_factory=FeatureStatistics)
    psnr: Psnr = field(default_factory=Psnr)
    psnr_recovered: Psnr = field(default_factory=Psnr)
    ssim: Ssim = field(default_factory=Ssim)
    codes: CodeUsage | None = None
    recovery: RecoveryAccuracy = field(default_factory=RecoveryAccuracy)

    def merge(self, other: Reconstruction) -> Reconstruction:
        """The accumulators over both sets of pictures."""
        parts = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            parts[name] = theirs if mine is None else mine if theirs is None else mine.merge(theirs)
        return Reconstruction(**parts)


class Evaluator:
    """One process's models and data; answers jobs."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.recipe = resolve(subject.recipe)
        self.device = torch.device(subject.device)
        self.extractor = extractor(self.recipe.evaluation.extractor).to(self.device)

    @cached_property
    def tokenizer(self) -> MergeVQ:
        """The trained tokenizer (averaged weights), in evaluation mode."""
        with checkpoints.newest(self.subject.checkpoint) as directory:
            return mergevq.load(directory).to(self.device).eval()

    @cached_property
    def untrained(self) -> MergeVQ:
        """The tokenizer as it was before its first step: same seed, same initialisation."""
        torch.manual_seed(self.recipe.seed)
        dataset = open_dataset(self.subject.data, self.recipe.data.train_split)
        model = loop.build(self.recipe, dataset).model()
        assert isinstance(model, MergeVQ)
        return model.to(self.device).eval()

    def batches(self, split: str) -> EvalBatches:
        """The fixed batches of a split."""
        return split_batches(self.recipe, self.subject.data, split)

    @torch.inference_mode()
    def answer(self, job: Job) -> Any:
        """Do one job; see the module's docstring."""
        answers = [self._batch(job, index) for index in job.batches]
        if job.kind in ("features", "untrained"):
            return {name: np.concatenate([part[name] for part in answers]) for name in answers[0]}
        merged = answers[0]
        for part in answers[1:]:
            merged = merged.merge(part)
        return merged

    def _batch(self, job: Job, index: int) -> Any:
        batch = to_unit_range(self.batches(job.split).batch(index), self.device)
        images, keep = batch["image"], job.keep
        match job.kind:
            case "reference":
                statistics = FeatureStatistics()
                statistics.update(self.extractor(images))
                return statistics
            case "reconstruction":
                return self._reconstruct(images, keep)
            case "features" | "untrained":
                model = self.tokenizer if job.kind == "features" else self.untrained
                return features(model, images, keep) | {"label": batch["label"].cpu().numpy()}

    def _reconstruct(self, images: Tensor, keep: int) -> Reconstruction:
        result = Reconstruction(codes=CodeUsage(self.tokenizer.config.quantizer.vocabulary))
        encoded = self.tokenizer.encode(images, keep)
        painted = self.tokenizer.decode(encoded)
        result.true.update(self.extractor(painted))
        result.psnr.update(images, painted)
        result.ssim.update(images, painted)
        assert result.codes is not None
        result.codes.update(encoded.indices)
        if self.tokenizer.config.recovery is not None:
            slots = self.tokenizer.recover(encoded.codes).argmax(-1)
            result.recovery.update(slots, encoded.source.assignment)
            repainted = self.tokenizer.decode_indices(encoded.indices)
            result.recovered.update(self.extractor(repainted))
            result.psnr_recovered.update(images, repainted)
        return result


def features(model: MergeVQ, images: Tensor, keep: int) -> dict[str, np.ndarray]:
    """Features of pictures (B, 3, H, W): `cls`, the summary token, and `mean`, the kept tokens averaged over the
    cells they stand for, before quantization; each (B, D) float32."""
    encoded = model.encode(images, keep)
    share = encoded.source.size / encoded.source.size.sum(1, keepdim=True)
    mean = torch.einsum("bk,bkd->bd", share.to(encoded.kept_tokens.dtype), encoded.kept_tokens)
    return {"cls": encoded.summary.float().cpu().numpy(), "mean": mean.float().cpu().numpy()}


def measure(
    subject: Subject, keeps: Sequence[int], answers: Any, *, step: int, run: str, say: Any = lambda text: None
) -> Curve:
    """The curve of one tokenizer. `answers(jobs)` yields the answers in order (here, or on many workers)."""
    recipe = resolve(subject.recipe)
    settings = recipe.evaluation
    evaluated = split_batches(recipe, subject.data, recipe.data.evaluation_split)
    learned = split_batches(recipe, subject.data, recipe.data.train_split)
    dataset = evaluated.dataset
    probing = dataset.labelled and learned.dataset.labelled
    network = extractor(settings.extractor)
    frechet = f"rfd_{network.name}"
    grid = recipe.tokenizer.model.grid_tokens

    def gather(kind: Any, split: str, keep: int, batches: EvalBatches) -> list[Any]:
        indices = range(batches.num_batches)
        jobs = [Job(kind, split, keep, tuple(indices[i : i + BATCHES_PER_JOB])) for i in range(0, len(indices), BATCHES_PER_JOB)]
        return list(answers(jobs))

    reference = merge(gather("reference", recipe.data.evaluation_split, 0, evaluated))
    rows: list[dict[str, float]] = []
    majority = float("nan")
    for keep in sorted(keeps):
        say(f"measuring {keep} kept tokens of {grid}")
        part = merge(gather("reconstruction", recipe.data.evaluation_split, keep, evaluated))
        row: dict[str, float] = {"keep": float(keep), "merge_ratio": 1 - keep / grid}
        row[frechet] = frechet_distance(reference, part.true)
        row |= {"psnr": part.psnr.compute()["psnr"], "ssim": part.ssim.compute()["ssim"]}
        row |= part.codes.compute()
        if part.recovery.count:
            row[f"{frechet}_recovered"] = frechet_distance(reference, part.recovered)
            row["psnr_recovered"] = part.psnr_recovered.compute()["psnr"]
            row |= part.recovery.compute()
        if probing:
            kinds = ["features", "untrained"] if settings.untrained_baseline else ["features"]
            for kind in kinds:
                test = stack(gather(kind, recipe.data.evaluation_split, keep, evaluated))
                train = stack(gather(kind, recipe.data.train_split, keep, learned))
                row |= probe_metrics(train, test, untrained=kind == "untrained")
            majority = majority_top1(train["label"], test["label"])
            row["majority_top1"] = majority
        rows.append(row)

    protocol: dict[str, Any] = {
        "extractor": {"name": network.name, **network.identity},
        "images": evaluated.images,
        "split": recipe.data.evaluation_split,
        "data": subject.data,
        "data_fingerprint": dataset.fingerprint,
        "preprocessing": f"shorter side to {recipe.data.views.image_size} (bicubic), centre crop; reconstructions rounded to uint8",
        "ema": True,
        "step": step,
        "checkpoint": subject.checkpoint,
        "batch": settings.batch,
        "mergevq": mergevq.__version__,
        "caveat": CAVEATS.get(recipe.tokenizer.losses.alignment.kind, ""),
    }
    if probing:
        protocol["probe"] = {
            "kind": "logistic regression on standardised features, C chosen on held-out training pictures",
            "train_images": learned.images,
            "features": {"cls": "summary token", "mean": "kept tokens before quantization, averaged over grid cells"},
            "tokens": "as many as the row keeps, in training and test pictures alike",
        }
        protocol["majority_top1"] = majority
    return Curve(run=run, rows=rows, protocol=protocol)


def probe_metrics(train: dict[str, np.ndarray], test: dict[str, np.ndarray], *, untrained: bool) -> dict[str, float]:
    """Linear-probe and k-NN top-1 (percent) of every feature, with the probe's 95% interval."""
    metrics: dict[str, float] = {}
    for name in FEATURES:
        suffix = ("untrained" if name == "cls" else f"untrained_{name}") if untrained else name
        arrays = [torch.from_numpy(part[key]) for part in (train, test) for key in (name, "label")]
        probe = linear_probe(*arrays)
        metrics[f"probe_top1_{suffix}"] = probe.top1
        metrics[f"probe_top1_{suffix}_low"], metrics[f"probe_top1_{suffix}_high"] = probe.interval
        metrics[f"knn_top1_{suffix}"] = knn_classify(*arrays).top1
    return metrics


def majority_top1(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Top-1 (percent) of always answering the training split's most frequent class."""
    return 100 * float(np.mean(test_labels == np.bincount(train_labels).argmax()))


def split_batches(recipe: Recipe, data: str, split: str) -> EvalBatches:
    """The fixed evaluation batches of a split, up to the recipe's limits."""
    settings = recipe.evaluation
    limit = settings.probe_images if split == recipe.data.train_split else settings.images
    return EvalBatches(open_dataset(data, split), recipe.data.views.image_size, settings.batch, limit=limit)


def merge(parts: Iterable[Any]) -> Any:
    """Merge accumulators in order."""
    parts = iter(parts)
    merged = next(parts)
    for part in parts:
        merged = merged.merge(part)
    return merged


def stack(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the arrays of feature jobs in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def local_answers(subject: Subject) -> Any:
    """A function that does jobs in this process."""
    evaluator = Evaluator(subject)
    return lambda jobs: (evaluator.answer(job) for job in jobs)


def ray_answers(subject: Subject, workers: int) -> Any:
    """A function that does jobs on `workers` Ray actors, and yields the answers in the order of the jobs."""
    import ray
    from ray.util import ActorPool

    remote = ray.remote(Evaluator)
    gpus = 1 if subject.device == "cuda" else 0
    actors = [remote.options(num_cpus=1, num_gpus=gpus).remote(subject) for _ in range(workers)]
    pool = ActorPool(actors)

    def answers(jobs: Sequence[Job]) -> Iterator[Any]:
        return pool.map(lambda actor, job: actor.answer.remote(job), jobs)

    return answers


def chosen_keeps(recipe: Recipe, keeps: Sequence[int] | None) -> tuple[int, ...]:
    """The kept counts to measure. Raises `InputError` for one that the encoder's layers cannot reach."""
    task = recipe.tokenizer
    within = reachable(task.model.grid_tokens, task.model.encoder.depth)
    chosen = tuple(keeps or recipe.evaluation.keeps or six_counts(task.keep.candidates(task.model.grid_tokens), task.model.grid_tokens, within))
    for keep in chosen:
        if keep not in within:
            raise InputError(f"cannot keep {keep} tokens: this encoder reaches {within.start} to {within.stop - 1} of {task.model.grid_tokens}")
    return chosen


__all__ = ["CAVEATS", "Evaluator", "Job", "Path", "Subject", "features", "measure", "to_tree"]
