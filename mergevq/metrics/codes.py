"""How much of the vocabulary a tokenizer uses."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator, added, percent


class CodeUsage(Accumulator):
    """Counts of every code of a vocabulary. Few tokens cannot use a large vocabulary: compare at one token count."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.counts: Tensor | None = None  # (V,) int64

    @property
    def count(self) -> int:
        """Tokens seen."""
        return 0 if self.counts is None else int(self.counts.sum())

    def update(self, indices: Tensor) -> None:
        """Add code indices, integers of any shape. Raises `InputError` for one outside the vocabulary."""
        if indices.is_floating_point() or indices.is_complex():
            raise InputError(f"code indices are {indices.dtype}: they must be integers")
        indices = indices.detach().flatten().long()
        if indices.numel() and not 0 <= int(indices.amin()) <= int(indices.amax()) < self.vocabulary:
            raise InputError(
                f"code indices reach from {int(indices.amin())} to {int(indices.amax())} "
                f"but the vocabulary holds 0 to {self.vocabulary - 1}"
            )
        self.counts = added(self.counts, torch.bincount(indices, minlength=self.vocabulary))

    def merge(self, other: CodeUsage) -> Self:
        """The counts over both sets, on the CPU. Raises `InputError` for different vocabularies."""
        if self.vocabulary != other.vocabulary:
            raise InputError(f"vocabularies of {self.vocabulary} and {other.vocabulary} codes do not merge")
        merged = self.at_rest()
        merged.counts = added(merged.counts, other.at_rest().counts)
        return merged

    def compute(self) -> dict[str, float]:
        """`code_usage`: percent of the vocabulary seen at least once; `code_entropy_bits`: entropy of the empirical
        distribution; `code_perplexity`: 2 to that power. NaN before the first token."""
        if self.counts is None or not self.count:
            return dict.fromkeys(("code_usage", "code_entropy_bits", "code_perplexity"), math.nan)
        counts = self.counts.double()
        shares = counts / counts.sum()
        bits = -float(torch.xlogy(shares, shares).sum()) / math.log(2) + 0.0  # no -0.0
        return {
            "code_usage": percent((counts > 0).sum(), self.vocabulary),
            "code_entropy_bits": bits,
            "code_perplexity": 2.0**bits,
        }
