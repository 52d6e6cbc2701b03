"""Logistic regression over all images at once, by L-BFGS."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HISTORY = 20  # steps that the search remembers


ROWS = 2048  # images whose logits are taken together


class Solution(NamedTuple):
    """Weights (D + 1, classes), the last row the bias, and the L-BFGS memory of the loss's curvature."""

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
    curvature scales its steps well, and where `start` solves a neighbouring problem: the loss's curvature is the same
    for every C, and its memory is kept.
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
