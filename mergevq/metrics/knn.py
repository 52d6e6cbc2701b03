"""Weighted nearest neighbours: what features know without any training (Wu et al. 2018; Caron et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.metrics.probe import checked, class_numbers, held_out_part

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07


class KnnResult(NamedTuple):
    """Percent of top-1 answers on the test set, and how many neighbours voted."""

    top1: float
    k: int


def knn_classify(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, chunk: int = 1024
) -> KnnResult:
    """Classify test features (B, D) by their k nearest train features, each voting exp(cosine / 0.07).

    k is the one of `NEIGHBOURS` (the smallest among equals; all there are, where the set is smaller) that does best
    on a held-out fifth of train; then all of train votes. `chunk` test pictures are compared at a time, which
    changes memory only. Works on the features' device. Raises `InputError` as `linear_probe` does.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    classes, train_y = train_y.unique(return_inverse=True)
    test_y = class_numbers(classes, test_y)
    train_x, test_x = F.normalize(train_x), F.normalize(test_x)
    held_out = held_out_part(train_y)
    inner = int((~held_out).sum())
    ks = [k for k in NEIGHBOURS if k <= inner] or [inner]
    right = votes_right(
        train_x[~held_out], train_y[~held_out], train_x[held_out], train_y[held_out], ks, len(classes), chunk
    )
    k = ks[int(right.argmax())]
    top1 = votes_right(train_x, train_y, test_x, test_y, [k], len(classes), chunk)
    return KnnResult(100 * int(top1) / len(test_y), k)


def votes_right(
    bank: Tensor, bank_y: Tensor, x: Tensor, y: Tensor, ks: list[int], num_classes: int, chunk: int
) -> Tensor:
    """How many of x (B, D) the bank (M, D) classifies as y (B,), for each k: (len(ks),) int64. Rows have length 1."""
    right = torch.zeros(len(ks), dtype=torch.int64, device=x.device)
    for part, labels in zip(x.split(chunk), y.split(chunk), strict=True):
        similarity, nearest = (part @ bank.T).topk(max(ks), dim=1)
        weight, voted = (similarity / TEMPERATURE).exp(), bank_y[nearest]
        for row, k in enumerate(ks):
            votes = weight.new_zeros(len(part), num_classes).scatter_add_(1, voted[:, :k], weight[:, :k])
            right[row] += (votes.argmax(1) == labels).sum()
    return right
