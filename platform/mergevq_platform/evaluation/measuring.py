"""Measuring the curve: for every kept count, what the tokenizer reconstructs and what its features know.

The work is cut into jobs of whole evaluation batches (batch b is always samples [bB, (b+1)B)). A job's answer is a set
of accumulators or features; the driver merges them in job order, so that any number of workers gives one result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import mergevq
from mergevq.metrics import extractor, frechet_distance
from mergevq_platform.curves import Curve
from mergevq_platform.data import EvalBatches
from mergevq_platform.evaluation.evaluator import Job, ProbeJob
from mergevq_platform.evaluation.subject import Subject, split_batches
from mergevq_platform.recipe import resolve

BATCHES_PER_JOB = 4
FEATURES = ("cls", "mean")
CAVEATS = {
    "stand_in": "The alignment teacher is a stand-in that saw these labels: the probe measures distillation, not self-supervision.",
    "supervised": "Training used the labels: the probe measures supervised features, not self-supervision.",
}


def measure(
    subject: Subject,
    keeps: Sequence[int],
    answers: Any,
    *,
    step: int | None,
    run: str,
    say: Any = lambda text: None,
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
        jobs = [
            Job(kind, split, keep, tuple(indices[i : i + BATCHES_PER_JOB]))
            for i in range(0, len(indices), BATCHES_PER_JOB)
        ]
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
            probes = []
            for kind in kinds:
                test = stack(gather(kind, recipe.data.evaluation_split, keep, evaluated))
                train = stack(gather(kind, recipe.data.train_split, keep, learned))
                for name in FEATURES:
                    suffix = (
                        name if kind == "features" else "untrained" if name == "cls" else f"untrained_{name}"
                    )
                    probes.append(ProbeJob(suffix, train[name], train["label"], test[name], test["label"]))
            for metrics in answers(probes):
                row |= metrics
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
        "ema": step is not None,
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
            "features": {
                "cls": "summary token",
                "mean": "kept tokens before quantization, averaged over grid cells",
            },
            "tokens": "as many as the row keeps, in training and test pictures alike",
        }
        protocol["majority_top1"] = majority
    return Curve(run=run, rows=rows, protocol=protocol)


def majority_top1(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Top-1 (percent) of always answering the training split's most frequent class."""
    return 100 * float(np.mean(test_labels == np.bincount(train_labels).argmax()))


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
