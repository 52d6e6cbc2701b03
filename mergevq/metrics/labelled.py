"""Labelled features of probes and neighbours: their checks, the held-out part, the interval of an accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mergevq.errors import InputError


def wilson_interval(percent: float, images: int) -> tuple[float, float]:
    """The 95% interval, in percent, of a rate of `percent` seen on so many images (Wilson 1927)."""
    z, rate = 1.959963984540054, percent / 100
    middle = rate + z * z / (2 * images)
    spread = z * math.sqrt(rate * (1 - rate) / images + z * z / (4 * images * images))
    scale = 100 / (1 + z * z / images)
    return max(0.0, scale * (middle - spread)), min(100.0, scale * (middle + spread))


def held_out_part(y: Tensor) -> Tensor:
    """A mask (B,) of the images held out: of every class each fifth, or its last where it has two to four.

    Raises `InputError` where no class has two images.
    """
    order = y.argsort(stable=True)
    sizes = torch.bincount(y)
    first = sizes.cumsum(0) - sizes
    rank = torch.empty_like(y)
    rank[order] = torch.arange(len(y), device=y.device) - first[y[order]]
    size = sizes[y]
    mask = torch.where(size < 5, (rank == size - 1) & (size > 1), rank % 5 == 4)
    if not mask.any():
        raise InputError(
            "no class of the train set has two images: a probe needs some to learn and some to choose by"
        )
    return mask


def unfit_labels(
    train_y: Tensor, test_y: Tensor, *, names: tuple[str, str] = ("train", "test")
) -> str | None:
    """The reason why these labels (B,) and those allow no probe, in words; None where they do.

    Negative labels are none. A probe needs two classes in train and in test, and a class of two train images: one to
    learn from and one to choose by. A test set of one class would only say how often that class is answered.
    """
    labelled = [y[y >= 0] for y in (train_y, test_y)]
    for part, y in zip(names, labelled, strict=True):
        if not len(y):
            return f"none of the {part} images has a label"
        if len(y.unique()) < 2:
            return f"the {part} set holds one class ({len(y):,} labelled images): a probe needs at least two"
    if int(labelled[0].unique(return_counts=True)[1].amax()) < 2:
        return f"no class of the {names[0]} set has two images: a probe needs some to learn and some to choose by"
    return None


def checked(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The features as float32 and the labels as int64 of the labelled images, on one device.

    Raises `InputError`; see `linear_probe`.
    """
    if train_x.ndim == test_x.ndim == 2 and train_x.shape[1] != test_x.shape[1]:
        raise InputError(
            f"train features have {train_x.shape[1]} numbers and test features {test_x.shape[1]}"
        )
    (train_x, train_y), (test_x, test_y) = (
        checked_part(part, x, y) for part, x, y in (("train", train_x, train_y), ("test", test_x, test_y))
    )
    if len(train_y.unique()) < 2:
        raise InputError(str(unfit_labels(train_y, test_y)))
    return train_x, train_y, test_x.to(train_x.device), test_y.to(train_x.device)


def checked_part(part: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One of the sets, named `part`, on its features' device."""
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
        raise InputError(
            f"{part} features {tuple(x.shape)} and labels {tuple(y.shape)}: they must be (B, D) and (B,), B at least 1"
        )
    if y.is_floating_point():
        raise InputError(f"{part} labels are {y.dtype}: they must be integers, -1 for none")
    labelled = y >= 0
    if not bool(labelled.any()):
        raise InputError(f"none of the {part} images has a label")
    if not bool(labelled.all()):
        x, y = x[labelled.to(x.device)], y[labelled]
    if not x.isfinite().all():
        raise InputError(f"the {part} features hold NaN or infinity: the tokenizer diverged")
    return x.detach().float(), y.to(x.device).long()


def class_numbers(classes: Tensor, labels: Tensor) -> Tensor:
    """The position of labels (B,) among the sorted `classes`; -1, never an answer, for a class that is not there."""
    position = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return torch.where(classes[position] == labels, position, -1)
