"""Weighted nearest-neighbour classification of features (Wu et al. 2018; Caron et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator
from mergevq.metrics.labelled import checked, class_numbers, held_out_part

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07


class KnnResult(NamedTuple):
    """Percent of top-1 answers on the test set, and how many neighbours voted."""

    top1: float
    k: int
    by_k: dict[int, float]  # top-1 on the test set for every k; reported, never chosen by


class Nearest(Accumulator):
    """The nearest train features of fixed queries, over train features that come in pieces, from many workers.

    Cosines are compared, of equal ones the lower position wins: merging pieces in any order gives what all of train
    at once would give, but for the last bit that products of other shapes differ in. What was pickled or merged can
    be merged and read but not updated: it has left the queries, which are large, behind.
    """

    def __init__(self, queries: Tensor, *, k: int = max(NEIGHBOURS)) -> None:
        """`queries`: features (Q, D)."""
        self.queries: Tensor | None = F.normalize(queries.detach().float())
        self.k = k
        self.best = torch.empty(
            len(queries), 0, dtype=torch.int64, device=queries.device
        )  # (Q, up to k), see _ranks
        self.labels = self.best  # (Q, up to k) int64

    def update(self, features: Tensor, labels: Tensor, first: int, *, chunk: int = 1024) -> None:
        """Add train features (B, D) with labels (B,) int64; `first` is the position of the first in the train set.

        `chunk` queries are compared at a time, which changes memory only. Raises `InputError` for a width that is not
        the queries', and for labels that do not fit.
        """
        assert self.queries is not None, "these neighbours have travelled: give the features to the original"
        if (
            features.ndim != 2
            or features.shape[1] != self.queries.shape[1]
            or labels.shape != features.shape[:1]
        ):
            raise InputError(
                f"train features {tuple(features.shape)}, labels {tuple(labels.shape)} and queries "
                f"{tuple(self.queries.shape)}: they must be (B, D), (B,) and (Q, D)"
            )
        bank = F.normalize(features.detach().to(self.queries.device).float())
        labels = labels.to(bank.device).long()
        positions = torch.arange(first, first + len(bank), device=bank.device)
        best, found = [], []
        for part, old, old_labels in zip(
            self.queries.split(chunk), self.best.split(chunk), self.labels.split(chunk), strict=True
        ):
            ranks, order = _ranks(part @ bank.T, positions).topk(min(self.k, len(bank)), dim=1)
            ranks, chosen = self._nearest(
                torch.cat([old, ranks], 1), torch.cat([old_labels, labels[order]], 1)
            )
            best.append(ranks)
            found.append(chosen)
        self.best, self.labels = torch.cat(best), torch.cat(found)

    def merge(self, other: Nearest) -> Self:
        """The nearest over both pieces of train, on the CPU. Raises `InputError` for other queries or another k."""
        if self.k != other.k or len(self.best) != len(other.best):
            raise InputError(
                f"the {self.k} nearest of {len(self.best)} queries and the {other.k} of {len(other.best)} do not merge"
            )
        merged, other = self.cpu_copy(), other.cpu_copy()
        merged.best, merged.labels = merged._nearest(
            torch.cat([merged.best, other.best], 1), torch.cat([merged.labels, other.labels], 1)
        )
        return merged

    def right(self, answers: Tensor, ks: Sequence[int], num_classes: int, *, chunk: int = 1024) -> Tensor:
        """The number of queries classified as `answers` (Q,) by k neighbours, each voting exp(cosine / 0.07): (len(ks),) int64.

        Labels and answers are in [0, num_classes); an answer outside is never right. Raises `InputError` where
        fewer than k train features were seen.
        """
        if max(ks) > self.best.shape[1]:
            raise InputError(f"{max(ks)} neighbours were asked for but only {self.best.shape[1]} kept")
        weights = (_cosines(self.best) / TEMPERATURE).exp()
        right = torch.zeros(len(ks), dtype=torch.int64, device=self.best.device)
        answers = answers.to(self.best.device)
        for weight, label, answer in zip(
            weights.split(chunk), self.labels.split(chunk), answers.split(chunk), strict=True
        ):
            votes, counted = weight.new_zeros(len(weight), num_classes), 0
            for row, k in sorted(enumerate(ks), key=lambda pair: pair[1]):
                votes.scatter_add_(1, label[:, counted:k], weight[:, counted:k])
                right[row] += (votes.argmax(1) == answer).sum()
                counted = k
        return right

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"queries": None}

    def _nearest(self, ranks: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ranks, order = ranks.topk(min(self.k, ranks.shape[1]), dim=1)
        return ranks, labels.gather(1, order)


class Votes(Accumulator):
    """Correctly classified queries for each number of neighbours; shares of the queries merge by exact sums."""

    def __init__(self, ks: Sequence[int]) -> None:
        self.ks = list(ks)
        self.held_out = torch.zeros(len(ks), dtype=torch.int64)  # right answers on the held-out part of train
        self.test = torch.zeros(len(ks), dtype=torch.int64)
        self.images = 0  # test queries

    def merge(self, other: Votes) -> Self:
        """The votes over both shares. Raises `InputError` for other numbers of neighbours."""
        if self.ks != other.ks:
            raise InputError(f"votes of {self.ks} and of {other.ks} neighbours do not merge")
        merged = self.cpu_copy()
        merged.held_out, merged.test = self.held_out + other.held_out, self.test + other.test
        merged.images = self.images + other.images
        return merged

    def result(self) -> KnnResult:
        """The number of neighbours that does best on the held-out part (the smallest among equals), on the test set."""
        top1 = 100 * self.test.double() / self.images
        best = int(self.held_out.argmax())
        return KnnResult(float(top1[best]), self.ks[best], dict(zip(self.ks, top1.tolist(), strict=True)))


def knn_votes(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    share: tuple[int, int] = (0, 1),
    chunk: int = 1024,
) -> Votes:
    """The votes for share i of n, `share` = (i, n), of the test and held-out features; see `knn_classify`.

    Any split into shares gives the same sums.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    classes, train_y = train_y.unique(return_inverse=True)
    test_y = class_numbers(classes, test_y)
    held_out = held_out_part(train_y)
    votes = Votes(neighbour_counts(int((~held_out).sum())))
    mine = slice(share[0], None, share[1])

    def right(bank: Tensor, labels: Tensor, queries: Tensor, answers: Tensor) -> Tensor:
        queries, answers = queries[mine], answers[mine]
        if not len(queries):
            return torch.zeros_like(votes.test)
        nearest = Nearest(queries, k=max(votes.ks))
        nearest.update(bank, labels, 0, chunk=chunk)
        return nearest.right(answers, votes.ks, len(classes), chunk=chunk).cpu()

    votes.held_out = right(train_x[~held_out], train_y[~held_out], train_x[held_out], train_y[held_out])
    votes.test = right(train_x, train_y, test_x, test_y)
    votes.images = len(test_y[mine])
    return votes


def knn_classify(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, chunk: int = 1024
) -> KnnResult:
    """Classify test features (B, D) by their k nearest train features, each voting exp(cosine / 0.07).

    k is the one of `NEIGHBOURS` (the smallest among equals; all there are, where the set is smaller) that does best
    on a held-out fifth of train; then all of train votes. `chunk` test images are compared at a time, which
    changes memory only. Works on the features' device. Raises `InputError` as `linear_probe` does.
    """
    return knn_votes(train_x, train_y, test_x, test_y, chunk=chunk).result()


def neighbour_counts(train_images: int) -> list[int]:
    """The counts of `NEIGHBOURS` up to `train_images`; `train_images` alone where it is below all of them."""
    return [k for k in NEIGHBOURS if k <= train_images] or [train_images]


def _ranks(cosines: Tensor, positions: Tensor) -> Tensor:
    # One int64 that orders by (cosine, then lower position): the float's bits as an integer of the same order, above
    # the position. top-k of floats would take any of equals.
    bits = cosines.contiguous().view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, -0x80000000 - bits)
    return (ordered << 32) + (0xFFFFFFFF - positions)


def _cosines(ranks: Tensor) -> Tensor:
    ordered = ranks >> 32
    bits = torch.where(ordered >= 0, ordered, -0x80000000 - ordered)
    return bits.to(torch.int32).view(torch.float32)
