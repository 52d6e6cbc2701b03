"""Preflight: open every input of a run, during training and after, before it starts."""

from __future__ import annotations

from typing import Any

from mergevq.errors import InputError
from mergevq_platform import loop
from mergevq_platform.data import BadImage, Dataset, EvalBatches, open_dataset
from mergevq_platform.recipe import Recipe, ResolvedRecipe
from mergevq_platform.tasks.task import task_of


def preflight(recipe: ResolvedRecipe, *, samples: Any = None, evaluated: bool = True) -> Any:
    """Open the data and build the model as every worker will, and if the run is `evaluated`, open what that will.

    `samples` is the training split where it is open already. Returns the training split. Raises `InputError`, naming the key, for
    data and weights that are missing or do not fit: of the evaluation also for a split whose first images cannot be decoded, and
    for images that are too small for its networks.
    """
    task = task_of(recipe)
    samples = task.open_data(recipe) if samples is None else samples
    steps, _ = loop.length(recipe, samples)
    if recipe.fork is not None and steps <= recipe.fork.step:
        raise InputError(
            f"the fork begins after step {recipe.fork.step}, and the recipe ends after {steps}: nothing is left to train, raise epochs"
        )
    task.require_data(recipe)
    evaluation = open_evaluation_split(recipe) if recipe.evaluation.every else None
    loop.build(recipe, samples)
    if evaluated:
        _require_decodable(recipe, evaluation)
        task.require_measures(recipe)
    return samples


def open_evaluation_split(recipe: Recipe) -> Dataset:
    """The images that are evaluated. Raises `InputError` if there are none."""
    return open_dataset(recipe.data.path, recipe.data.evaluation_split, recipe.data.reading)


def require_classes(recipe: Recipe, why: str) -> None:
    """Raise `InputError` where a split has no labels, or one class alone, and so nothing that a probe could tell apart."""
    data = recipe.data
    for split in (data.train_split, data.evaluation_split):
        opened = open_dataset(data.path, split, data.reading)
        if sum(images > 0 for images in opened.class_images()) < 2:
            lacks = "has one class" if opened.labelled else "has no labels"
            raise InputError(
                f"{why}, but '{split}' of {data.path} {lacks}: label it, or choose another objective"
            )


def _require_decodable(recipe: Recipe, evaluation: Dataset | None) -> None:
    try:
        evaluation = evaluation or open_evaluation_split(recipe)
    except InputError as error:
        raise InputError(f"{error}; or train with --no-evaluation") from None
    batch = recipe.evaluation.batch
    first = EvalBatches(evaluation, recipe.data.views.image_size, batch, limit=batch)
    try:
        first.batch(0)
    except BadImage:
        first.without(first.bad_rows())
