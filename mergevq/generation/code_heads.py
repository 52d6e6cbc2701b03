"""Factorised codes: the embedding of sub-tokens, and the transformer that predicts one cell's in turn (section 6.1).

A softmax over 2^18 codes is never computed. An index splits into, say, its 6 low and 12 high bits; each cell's hidden
vector starts a short sequence that predicts the low bits and then, given them, the high ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mergevq.generation.config import TransformerConfig
from mergevq.generation.packed_linear import Linear
from mergevq.generation.transformer import Transformer


class FactorisedCodes(nn.Module):
    """Embedding, intra-cell transformer and heads of codes that split into `sub_bits`, lowest bits first."""

    def __init__(self, config: TransformerConfig, sub_bits: tuple[int, ...], intra_depth: int) -> None:
        super().__init__()
        self.sub_bits = sub_bits
        self.embeddings = nn.ModuleList(nn.Embedding(2**bits, config.width) for bits in sub_bits)
        self.intra = Transformer(config, intra_depth)
        self.heads = nn.ModuleList(Linear(config.width, 2**bits) for bits in sub_bits)

    def split(self, indices: Tensor) -> Tensor:
        """Indices (...) int64 -> sub-tokens (..., S)."""
        parts, shift = [], 0
        for bits in self.sub_bits:
            parts.append((indices >> shift) & (2**bits - 1))
            shift += bits
        return torch.stack(parts, -1)

    def join(self, parts: Tensor) -> Tensor:
        """Sub-tokens (..., S) -> indices (...) int64."""
        index, shift = torch.zeros_like(parts[..., 0]), 0
        for part, bits in zip(parts.unbind(-1), self.sub_bits, strict=True):
            index = index | (part << shift)
            shift += bits
        return index

    def embed(self, indices: Tensor) -> Tensor:
        """Indices (...) -> (..., D): the sum of the sub-tokens' embeddings."""
        parts = self.split(indices).unbind(-1)
        first, *rest = (table(part) for table, part in zip(self.embeddings, parts, strict=True))
        return sum(rest, start=first)

    def logits(self, hidden: Tensor, indices: Tensor) -> list[Tensor]:
        """Hidden (B, T, D) of the cells and their true indices (B, T) -> teacher-forced logits (B, T, V) per sub-token."""
        parts = self.split(indices).flatten(0, 1)
        previous = [table(parts[:, j]) for j, table in enumerate(self.embeddings[:-1])]
        states = self.intra(torch.stack([hidden.flatten(0, 1), *previous], 1), None)
        states = states.unflatten(0, hidden.shape[:2])
        return [head(states[..., j, :]) for j, head in enumerate(self.heads)]

    def decode(self, hidden: Tensor, choose: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Predict the cells of hidden (R, D) one sub-token after the other -> sub-tokens (R, S).

        `choose(j, logits (R, V))` returns sub-token j of every row, int64.
        """
        cache = self.intra.cache(hidden.shape[0], len(self.heads), hidden)
        x, parts = hidden, []
        for j, head in enumerate(self.heads):
            slot = torch.full((1,), j, device=hidden.device)
            x = self.intra.step(x[:, None], None, slot, cache=cache, visible=j + 1)[:, 0]
            parts.append(choose(j, head(x)))
            x = self.embeddings[j](parts[-1])
        return torch.stack(parts, -1)
