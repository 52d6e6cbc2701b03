"""The specification of an evaluation: weights, images, kept counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from mergevq.config import to_tree
from mergevq.merge_schedule import reachable, require_reachable
from mergevq.tokenizer import TokenizerConfig
from mergevq_platform.data import Dataset, EvalBatches, Reading, open_dataset
from mergevq_platform.evaluation.curve import six_counts
from mergevq_platform.recipe import Recipe, ResolvedRecipe
from mergevq_platform.storage import checkpoints


@dataclass(frozen=True)
class EvaluationSpec:
    """A trained tokenizer or classifier and its images, in a form that travels to workers.

    `checkpoint` is a directory or URI that holds one; none: the tokenizer as it was before its first step.
    """

    checkpoint: str | None
    recipe: ResolvedRecipe
    data: str
    device: Literal["cpu", "cuda"]


def identity(spec: EvaluationSpec) -> dict[str, str]:
    """The identity of a model: the hash of its weights, or its initialisation."""
    if spec.checkpoint is None:
        return untrained_identity(spec.recipe, 0)
    with checkpoints.weights(spec.checkpoint) as directory:
        return {
            "weights_sha256": checkpoints.weights_sha256(directory),
            "config_sha256": checkpoints.sha256(directory / "config.json"),
        }


def untrained_identity(recipe: Recipe, seed: int) -> dict[str, str]:
    """The identity of an untrained tokenizer; `seed` counts up from the recipe's own."""
    task = json.dumps(to_tree(recipe.tokenizer), sort_keys=True)
    return {
        "initialisation": f"seed {recipe.seed + seed}, torch {torch.__version__}",
        "task_sha256": hashlib.sha256(task.encode()).hexdigest(),
    }


@lru_cache(maxsize=8)
def _opened(data: str, split: str, reading: Reading) -> Dataset:
    return open_dataset(data, split, reading)


def reading_of(recipe: Recipe, data: str) -> Reading:
    """The reading of the images at `data`: the recipe's for its own set; another set has its own columns."""
    own = recipe.data
    return own.reading if data == own.path else Reading(background=own.background)


def split_batches(recipe: Recipe, data: str, split: str, *, left_out: Collection[int] = ()) -> EvalBatches:
    """The fixed evaluation batches of a split, up to the recipe's limits, without the rows `left_out`."""
    settings = recipe.evaluation
    limit = settings.probe_images if split == recipe.data.train_split else settings.images
    return EvalBatches(
        _opened(data, split, reading_of(recipe, data)),
        recipe.data.views.image_size,
        settings.batch,
        limit=limit,
        left_out=left_out,
    )


def batches_key(batches: EvalBatches) -> dict[str, Any]:
    """The identity of the images of an evaluation: part of a pass's key."""
    key: dict[str, Any] = {
        "data": batches.dataset.fingerprint,
        "images": batches.images,
        "batch": batches.batch_size,
        "size": batches.size,
    }
    if batches.left_out:
        key["left_out"] = list(batches.left_out)
    if batches.dataset.background is not None:
        key["background"] = batches.dataset.background
    return key


def keeps_to_measure(recipe: Recipe, keeps: Sequence[int] | None) -> tuple[int, ...]:
    """The kept counts to measure. Raises `InputError` for one that the encoder's layers cannot reach."""
    task = recipe.tokenizer
    trained = task.keep.candidates(task.model.grid_tokens)
    return reachable_keeps(task.model, keeps or recipe.evaluation.keeps, trained)


def reachable_keeps(
    model: TokenizerConfig, keeps: Sequence[int] | None, candidates: Sequence[int]
) -> tuple[int, ...]:
    """The wanted kept counts, or six spread over the candidates; `InputError` for one that is out of reach."""
    within = reachable(model.grid_tokens, model.encoder.depth)
    chosen = tuple(keeps or six_counts(candidates, model.grid_tokens, within))
    for keep in chosen:
        require_reachable(model.grid_tokens, keep, model.encoder.depth)
    return chosen
