"""What a linear layer can read from features: full-batch logistic regression, as DINOv2's L-BFGS probe."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mergevq.errors import InputError

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
HISTORY = 20  # steps that the search remembers
ROWS = 2048  # images whose logits are taken together


class ProbeResult(NamedTuple):
    """What a probe found. Percentages are of top-1 answers."""

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


class Solution(NamedTuple):
    """Weights (D + 1, classes), the last row the bias, and what the search for them learned of the loss's curvature."""

    weights: Tensor
    curvature: list[tuple[Tensor, Tensor]]  # steps, and the change of the loss's gradient over each


def fit_logistic(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    C: float,
    *,
    start: Solution | None = None,
    tolerance: float = 1e-5,
    steps: int = 1000,
) -> Solution:
    """The weights that minimise C Σ cross-entropy + ½ |weights|², the bias free.

    The objective of scikit-learn's LogisticRegression. Features (B, D) float32, labels (B,) in [0, classes). L-BFGS
    (Liu & Nocedal 1989) over the mean loss, until the step that it would take promises less than `tolerance` of the
    objective, some 1e-4 from the least. It is fast where features are uncorrelated, so that each weight's own
    curvature scales its steps well, and where `start` solves a neighbouring problem: what is known of the loss's
    curvature is the same for every C, and is kept.
    """
    images, dim = x.shape
    decay = x.new_full((dim + 1, 1), 1 / (C * images))
    decay[-1] = 0
    # Rows are taken in blocks whose logits stay in the cache; of all images at once they may not even fit into memory.
    blocks = [(x[first : first + ROWS], y[first : first + ROWS]) for first in range(0, images, ROWS)]
    rows = torch.arange(min(images, ROWS), device=x.device)

    def evaluate(weights: Tensor, curvature: Tensor | None = None) -> tuple[float, Tensor]:
        # The objective per image, and its gradient; each weight's own curvature is added to `curvature`.
        gradient, loss = decay * weights, 0.5 * (decay * weights.square()).double().sum()
        for part, labels in blocks:
            here = rows[: len(part)]
            logits = torch.addmm(weights[-1], part, weights[:-1])
            logits -= logits.amax(1, keepdim=True)
            right = logits[here, labels]
            odds = logits.exp_()
            sums = odds.sum(1, keepdim=True)
            loss += (sums.squeeze(1).log() - right).double().sum() / images
            odds /= sums
            if curvature is not None:
                spread = odds * (1 - odds) / images
                curvature[:-1].addmm_(part.square().T, spread)
                curvature[-1] += spread.sum(0)
            odds[here, labels] -= 1
            gradient[:-1].addmm_(part.T, odds, alpha=1 / images)
            gradient[-1] += odds.sum(0) / images
        return float(loss), gradient

    weights, memory = start or Solution(x.new_zeros(dim + 1, num_classes), [])
    scale = decay.repeat(1, num_classes)
    value, gradient = evaluate(weights, scale)
    scale = scale.clamp(min=1e-12)
    for _ in range(steps):
        step = _quasi_newton(gradient, [(s, change + decay * s) for s, change in memory], scale)
        slope = float((step * gradient).sum())
        if -0.5 * slope < tolerance * value:
            break
        length = 1.0
        while True:  # a step of L-BFGS is nearly always taken whole
            moved = weights + length * step
            new_value, new_gradient = evaluate(moved)
            if new_value <= value + 1e-4 * length * slope or length < 1e-3:
                break
            length /= 2
        taken = moved - weights
        change = new_gradient - gradient
        if float((taken * change).sum()) > 0:
            memory = [*memory, (taken, change - decay * taken)][-HISTORY:]
        weights, value, gradient = moved, new_value, new_gradient
    return Solution(weights, memory)


def _quasi_newton(gradient: Tensor, memory: list[tuple[Tensor, Tensor]], scale: Tensor) -> Tensor:
    # L-BFGS's two loops: minus the inverse curvature, as far as the memory tells it, times the gradient.
    direction, shares = -gradient, []
    products = [(step * change).sum() for step, change in memory]
    for (step, change), product in zip(reversed(memory), reversed(products), strict=True):
        shares.append((step * direction).sum() / product)
        direction = direction - shares[-1] * change
    if memory:
        change = memory[-1][1]
        direction = direction * (products[-1] / (change.square() / scale).sum())
    direction = direction / scale
    for (step, change), product, share in zip(memory, products, reversed(shares), strict=True):
        direction = direction + (share - (change * direction).sum() / product) * step
    return direction


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
    """Why no probe can be learnt from these labels (B,) and judged by those, in words; none where one can.

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
