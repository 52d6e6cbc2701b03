"""What an evaluation will need, asked for before the first step: a training must not end in an evaluation that cannot begin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics import extractor
from mergevq.metrics.lpips import LpipsDistance
from mergevq_platform.data import BadImage, EvalBatches, open_dataset
from mergevq_platform.recipe import GeneratorTask, Recipe, RecoveryTask, TokenizerTask


def require_evaluable(recipe: Recipe) -> None:
    """Open what the evaluation after training opens. Raises `InputError`, naming the key, for what it could not begin with.

    That is a missing evaluation split, one whose first images cannot be decoded, missing or unfit weights of the extractor and
    of LPIPS, and images that are too small for them.
    """
    data, size = recipe.data, recipe.data.views.image_size
    try:
        evaluated = open_dataset(data.path, data.evaluation_split, data.reading)
    except InputError as error:
        raise InputError(f"{error}; or train with --no-evaluation") from None
    if isinstance(recipe.task, GeneratorTask):
        open_dataset(data.path, data.train_split, data.reading)
    first = EvalBatches(evaluated, size, recipe.evaluation.batch, limit=recipe.evaluation.batch)
    try:
        first.batch(0)
    except BadImage:
        first.without(first.bad_rows())
    if not isinstance(recipe.task, TokenizerTask | RecoveryTask | GeneratorTask):
        return
    blank = torch.zeros(1, 3, size, size)
    network = extractor(recipe.evaluation.extractor)
    _require_takes(f"evaluation.extractor: {network.name}", size, lambda: network(blank))
    if recipe.evaluation.lpips is not None and not isinstance(recipe.task, GeneratorTask):
        distance = LpipsDistance(recipe.evaluation.lpips)
        _require_takes(f"evaluation.lpips: {distance.name}", size, lambda: distance(blank, blank))


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


def _require_takes(what: str, size: int, forward: Callable[[], Tensor]) -> None:
    try:
        forward()
    except RuntimeError as error:  # PyTorch's word for a map that has become smaller than a kernel
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{what} does not take images of {size} px ({reason}): leave it out, or choose another"
        ) from None
