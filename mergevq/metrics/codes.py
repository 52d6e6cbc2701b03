"""Code usage and entropy, class balance, and bits per image."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator, added, percent
from mergevq.ragged import NO_TOKEN


class Counts(Accumulator):
    """Counts of the integers 0 to size - 1, taken without waiting for the device."""

    what = "values"
    padding: int | None = None  # stands for no value, and is not counted

    def __init__(self, size: int) -> None:
        self.size = size
        self.counts: Tensor | None = None  # (size + 1,) int64; the last counts what is outside
        self.reach: Tensor | None = None  # (2,) int64: the least and the negated greatest

    @property
    def count(self) -> int:
        """Integers seen."""
        return 0 if self.counts is None else int(self.counts.sum())

    def update(self, values: Tensor) -> None:
        """Add integers of any shape. Raises `InputError` for another dtype; one outside is said when it is computed."""
        if values.is_floating_point() or values.is_complex():
            raise InputError(f"{self.what} are {values.dtype}: they must be integers")
        values = values.detach().flatten().long()
        if not len(values):
            return
        if self.counts is None:
            self.counts = values.new_zeros(self.size + 1)
        self.counts = self.counts.to(values.device)
        ones = torch.ones_like(values)
        if self.padding is not None:
            ones = (values != self.padding).long()
            values = values.where(ones > 0, 0)
        inside = torch.where((values >= 0) & (values < self.size), values, self.size)
        self.counts.index_add_(0, inside, ones)
        self.reach = _least(self.reach, torch.stack([values.amin(), -values.amax()]))

    def merge(self, other: Self) -> Self:
        """The counts over both sets, on the CPU. Raises `InputError` for different sizes."""
        if self.size != other.size:
            raise InputError(f"counts of {self.size} and of {other.size} {self.what} do not merge")
        merged, other = self.cpu_copy(), other.cpu_copy()
        merged.counts = added(merged.counts, other.counts)
        merged.reach = _least(merged.reach, other.reach)
        return merged

    def checked(self) -> Tensor | None:
        """The counts (size,) int64, None before the first. Raises `InputError` where some were outside."""
        if self.counts is None or self.reach is None:
            return None
        if int(self.counts[-1]):
            raise InputError(
                f"{self.what} reach from {int(self.reach[0])} to {-int(self.reach[1])}: "
                f"they must be 0 to {self.size - 1}"
            )
        return self.counts[:-1]


class CodeUsage(Counts):
    """Counts of every code of a vocabulary. Few tokens cannot use a large vocabulary: compare at one token count.

    Indices of images that keep different counts are padded with -1, which is no code.
    """

    what = "code indices"
    padding = NO_TOKEN

    def compute(self) -> dict[str, float]:
        """`code_usage`: percent of the vocabulary seen at least once; `code_entropy_bits`: entropy of the empirical
        distribution; `code_perplexity`: 2 to that power. NaN before the first token.

        Raises `InputError` where an index was outside the vocabulary.
        """
        counts = self.checked()
        if counts is None:
            return dict.fromkeys(("code_usage", "code_entropy_bits", "code_perplexity"), math.nan)
        bits = entropy_bits(counts)
        return {
            "code_usage": percent((counts > 0).sum(), self.size),
            "code_entropy_bits": bits,
            "code_perplexity": 2.0**bits,
        }


class ClassBalance(Counts):
    """The balance of classes in a set of images, real or generated; a distance between sets depends on it."""

    what = "class labels"

    def compute(self) -> dict[str, float]:
        """`class_coverage`: percent of the classes seen; `class_evenness`: entropy over that of equal shares, at most 1;
        `class_fewest`, `class_most`: images of the rarest and of the most frequent class. NaN before the first.

        Raises `InputError` where a label was outside the classes.
        """
        counts = self.checked()
        if counts is None:
            names = ("coverage", "evenness", "fewest", "most")
            return {f"class_{name}": math.nan for name in names}
        return {
            "class_coverage": percent((counts > 0).sum(), self.size),
            "class_evenness": entropy_bits(counts) / math.log2(self.size) if self.size > 1 else 1.0,
            "class_fewest": float(counts.amin()),
            "class_most": float(counts.amax()),
        }


def entropy_bits(counts: Tensor) -> float:
    """The entropy in bits of the empirical distribution with these counts."""
    shares = counts.double() / counts.sum()
    return -float(torch.xlogy(shares, shares).sum()) / math.log(2) + 0.0  # no -0.0


def histogram_distance(a: CodeUsage, b: CodeUsage) -> float:
    """The Hellinger distance of two code histograms, in [0, 1]: 0 for equal shares, 1 where no code is in both.

    The unigram half of CHD (arXiv 2603.08064), `CHD-1D`, which its release computes alone. Two samples of one distribution
    are apart, too, the more so the fewer tokens there are to a code: compare with the distance of two halves of one set.
    Raises `InputError` for different vocabularies and for a histogram without codes.
    """
    if a.size != b.size:
        raise InputError(f"histograms of {a.size} and of {b.size} codes have no distance: use one tokenizer")
    counts = [usage.checked() for usage in (a, b)]
    p, q = (
        torch.zeros(0) if found is None else (found.cpu().double() / found.sum().cpu()).sqrt()
        for found in counts
    )
    if not (len(p) and len(q) and p.isfinite().all() and q.isfinite().all()):
        raise InputError("a histogram of no codes has no distance: count at least one image's")
    return min(1.0, float((p - q).square().sum() / 2) ** 0.5)


def bits_per_image(keep: int, grid_tokens: int, *, code_bits: float, entropy_bits: float) -> dict[str, float]:
    """The size in bits of an image of `keep` codes.

    `bits`: codes of `code_bits` each (log2 of the vocabulary); `bits_entropy`: if an ideal coder knew how often each
    code comes (`code_entropy_bits`); `bits_source`: to say which grid cell goes to which kept token, any assignment
    being as likely as another. Decoding with the true source needs `bits` and `bits_source`, with the recovered one
    `bits` alone.
    """
    return {
        "bits": keep * code_bits,
        "bits_entropy": keep * entropy_bits,
        "bits_source": partitions_bits(grid_tokens, keep),
    }


@lru_cache
def partitions_bits(cells: int, parts: int) -> float:
    """log2 of the number of ways to part so many cells into so many non-empty clusters (Stirling, second kind).

    Kept tokens are ordered by their first cell, so that clusters have no names and a source is such a partition.
    """
    row = [1] + [0] * parts  # S(0, k)
    for n in range(1, cells + 1):
        for k in range(min(n, parts), 0, -1):
            row[k] = k * row[k] + row[k - 1]
        row[0] = 0
    if not row[parts]:
        raise InputError(f"{cells} cells cannot be parted into {parts} clusters")
    return _log2(row[parts])


def _log2(number: int) -> float:
    shift = max(0, number.bit_length() - 64)  # beyond a float's range, keep the leading bits
    return math.log2(number >> shift) + shift


def _least(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return torch.minimum(a.to(b.device), b)
