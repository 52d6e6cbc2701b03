"""The kept counts of a code set beside those of a generator: refused where they do not fit, and as a histogram."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.generation import RasterConfig, is_ragged
from mergevq.keep import ListedKeepConfig
from mergevq_platform.codes.codeset import CodeSet
from mergevq_platform.codes.manifest import CodeManifest
from mergevq_platform.recipe import GeneratorTaskConfig

T = TypeVar("T", bound=GeneratorTaskConfig)


def with_counts_of(task: T, manifest: CodeManifest) -> T:
    """The task of a generator on these codes: where every image has its own count, its model is told so.

    Raises `InputError` for a budget that is not that of the codes, and for a model that cannot learn such counts.
    """
    allocation, model = manifest.allocation, task.model
    budget = task.budget or task.generation.budget
    if allocation is None:
        if budget is not None or is_ragged(model):
            wanted = f"budget {budget:g}" if budget is not None else "model.ragged"
            raise InputError(
                f"task.codes: {task.codes} holds one kept count a row group, which has no {wanted}: leave that out, or "
                "tokenize with --budget"
            )
        return task
    if isinstance(model, RasterConfig):
        raise InputError(
            f"task.codes: {task.codes} holds every image at its own kept count, but a raster generator makes all "
            f"{model.grid_tokens} cells and is told none: train mergear or random_order, or tokenize with --keep"
        )
    if task.budget not in (None, allocation.budget):
        raise InputError(
            f"task.budget is {task.budget:g} but {task.codes} was made for {allocation.budget:g}: leave it out, or tokenize "
            f"with --budget {task.budget:g}"
        )
    _require_known(task, manifest.keeps)
    if task.keep not in (None, ListedKeepConfig(counts=model.keeps)):
        raise InputError(f"task.keep: the images of {task.codes} have their own kept counts: leave keep out")
    return replace(
        task,
        model=replace(model, ragged=True),
        keep=None,
        budget=allocation.budget,
        allocator=allocation.allocator,
    )


def require_counts(task: GeneratorTaskConfig, codes: CodeSet) -> None:
    """Raise `InputError` unless a code set holds what the generator is to learn: counts of its own, or one for all."""
    if not is_ragged(task.model):
        for keep in task.kept_counts():
            codes.groups_of(keep)
    elif codes.manifest.allocation is None or codes.manifest.allocation.budget != task.budget:
        made = codes.manifest.allocation
        found = "one kept count a row group" if made is None else f"counts of the mean {made.budget:g}"
        raise InputError(
            f"task.codes: {codes.path} holds {found}, but this run learns counts of the mean {task.budget or 0:g}: name the codes "
            "that it began with"
        )
    else:
        _require_known(task, codes.manifest.keeps)


def histogram_of(codes: CodeSet, task: GeneratorTaskConfig) -> Tensor | None:
    """The views of each class, and of none, at each count that a ragged generator knows: (C + 1, M) int64; None of any other."""
    if not is_ragged(task.model):
        return None
    found, keeps = codes.histogram(), task.model.keeps
    counted = torch.zeros(task.model.classes + 1, len(keeps), dtype=torch.int64)
    for place, count in enumerate(found.counts):
        if count in keeps:
            column = [*(of_class[place] for of_class in found.of_class), found.without_class[place]]
            counted[:, keeps.index(count)] = torch.tensor(column)
    return counted


def _require_known(task: GeneratorTaskConfig, stored: tuple[int, ...]) -> None:
    model = task.model
    assert not isinstance(model, RasterConfig)
    if set(stored) <= set(model.keeps) and len(model.keeps) > 1:
        return
    counts = ",".join(map(str, sorted({*stored, *model.keeps}) if len(stored) < 2 else stored))
    raise InputError(
        f"task.model.keeps is {list(model.keeps)}, but the images of {task.codes} keep {', '.join(map(str, stored))} tokens: "
        f"set task.model.keeps=[{counts}]"
    )
