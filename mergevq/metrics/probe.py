"""Linear probe: full-batch logistic regression on cached features, as DINOv2's L-BFGS probe."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.labelled import (
    checked,
    checked_part,
    class_numbers,
    held_out_part,
    unfit_labels,
    wilson_interval,
)
from mergevq.metrics.logistic import fit_logistic

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


class ProbeResult(NamedTuple):
    """Top-1 accuracy of a probe in percent, with its interval and the chosen regularisation."""

    top1: float  # percent of the test images
    interval: tuple[float, float]  # 95% Wilson interval of `top1`, percent
    C: float  # inverse strength of the regularisation
    train_images: int
    classes: int
    held_out_top1: float  # percent of the held-out part of train, where C was chosen


def linear_probe(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> ProbeResult:
    """Train a linear classifier on features (B, D) and labels (B,) of one set, and score it once on the other.

    Features are standardised by the train set. C is the one of `C_GRID` (the smallest among equals) that does best
    on a held-out fifth of train, every class in its share; the classifier is then fitted to all of train. Nothing is
    random. Works on the features' device. Images with a negative label have none, and are left out. Raises `InputError`
    for features that do not make a problem (wrong shapes, NaN), and for labels that do not: see `unfit_labels`.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    return fit_probe(train_x, train_y).score(test_x, test_y)


class FittedProbe(NamedTuple):
    """A linear classifier that was trained on features, to be scored on any number of sets."""

    classes: Tensor  # (classes,) the labels that it knows, sorted
    mean: Tensor  # (D,) float64, as is `std`: of the train set
    std: Tensor
    axes: Tensor  # (D, D) float32, the train set's principal ones
    weights: Tensor  # (D + 1, classes)
    C: float
    train_images: int
    held_out_top1: float

    def score(self, test_x: Tensor, test_y: Tensor) -> ProbeResult:
        """Its top-1 on features (B, D) with labels (B,) int64; those with a negative label are left out.

        Raises `InputError` where none has a label, and for features of another width or that are not finite.
        """
        x, y = checked_part("test", test_x, test_y)
        if x.shape[1] != len(self.mean):
            raise InputError(f"train features have {len(self.mean)} numbers and test features {x.shape[1]}")
        x, y = x.to(self.mean.device), class_numbers(self.classes, y.to(self.mean.device))
        top1 = _top1(self.weights, ((x - self.mean) / self.std).float() @ self.axes, y)
        interval = wilson_interval(top1, len(y))
        return ProbeResult(top1, interval, self.C, self.train_images, len(self.classes), self.held_out_top1)


def fit_probe(train_x: Tensor, train_y: Tensor) -> FittedProbe:
    """Train the classifier of `linear_probe` on features (B, D) and labels (B,). Raises `InputError` as that does."""
    train_x, train_y = checked_part("train", train_x, train_y)
    classes, train_y = train_y.unique(return_inverse=True)
    if len(classes) < 2:
        raise InputError(str(unfit_labels(train_y, train_y)))
    mean, std = mean_and_deviation(train_x)
    train_x = ((train_x - mean) / std).float()
    axes = principal_axes(train_x)
    train_x = train_x @ axes
    held_out = held_out_part(train_y)

    num_classes, best = len(classes), (-1.0, 0.0)
    inner_x, inner_y = train_x[~held_out], train_y[~held_out]
    solution = chosen = None
    for C in C_GRID:  # from strong to weak regularisation: each solution starts the next
        solution = fit_logistic(inner_x, inner_y, num_classes, C, start=solution)
        top1 = _top1(solution.weights, train_x[held_out], train_y[held_out])
        if top1 > best[0]:
            best, chosen = (top1, C), solution
    held_out_top1, C = best
    solution = fit_logistic(train_x, train_y, num_classes, C, start=chosen)
    return FittedProbe(classes, mean, std, axes, solution.weights, C, len(train_y), held_out_top1)


def mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) float64 of features (B, D); the deviation of a constant feature is 1."""
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    return mean, torch.where(std > 1e-6 * mean.abs().clamp(min=1e-30), std, 1.0)


def principal_axes(x: Tensor) -> Tensor:
    """The principal axes (D, D) of features (B, D), in float32."""
    return torch.linalg.eigh(x.double().T @ x.double())[1].float()


def standardised(train_x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets less the train mean, over the train deviation; a constant feature becomes 0 in train."""
    mean, std = mean_and_deviation(train_x)
    return ((train_x - mean) / std).float(), ((test_x - mean) / std).float()


def uncorrelated(train_x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets turned to the principal axes of train: |weights|, and so the probe's answer, stays the same."""
    axes = principal_axes(train_x)
    return train_x @ axes, test_x @ axes


def _top1(weights: Tensor, x: Tensor, y: Tensor) -> float:
    return 100 * float(((x @ weights[:-1] + weights[-1]).argmax(1) == y).double().mean())
