"""Drawing codes for a step: logits of both halves into one, and a choice by each place's own random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergevq.generation.code_heads import SubTokens
from mergevq.generation.guidance import GuidanceConfig
from mergevq.generation.sampling import choose


@dataclass(frozen=True)
class Drawing:
    """How the codes of a generation are drawn: the sub-tokens' settings and the guidance.

    With guidance a batch holds the conditional half first and the unconditional half after it.
    """

    tokens: SubTokens
    settings: list[tuple[float, int, float]]  # temperature, top_k, top_p per sub-token
    guidance: GuidanceConfig

    def scales(self, fractions: list[float], device: torch.device) -> Tensor:
        """The guidance's scales (T, S) float64 at the steps with these shares of tokens decoded."""
        rows = [self.guidance.scales(fraction, len(self.settings)) for fraction in fractions]
        return torch.tensor(rows, dtype=torch.float64, device=device)

    def draw(self, hidden: Tensor, uniforms: Tensor, scales: Tensor, seen: Tensor | None = None) -> Tensor:
        """Indices (R,) int64 for hidden (R, D), or (2 R, D) with the unconditional half, numbers (R, S) and the
        guidance's scales (S,); where `seen` (R, C) holds codes, with -1 for none, only these can come."""
        halves = hidden.shape[0] // uniforms.shape[0]
        known = None if seen is None else self.tokens.split(seen.clamp(min=0))
        chosen: list[Tensor] = []

        def pick(j: int, logits: Tensor) -> Tensor:
            if halves == 2:
                conditional, unconditional = logits.chunk(2)
                scale = scales[j].to(logits.dtype)
                guided = unconditional + scale * (conditional - unconditional)
                logits = torch.where(scale == 1, conditional, guided)  # at 1 not even rounding differs
            if seen is not None and known is not None:
                logits = logits.masked_fill(~_possible(seen, known, chosen, logits.shape[-1]), -torch.inf)
            chosen.append(choose(logits, uniforms[:, j], *self.settings[j]))
            return chosen[-1].repeat(halves)

        parts = self.tokens.decode(hidden, pick)
        return self.tokens.join(parts[: uniforms.shape[0]])


def _possible(seen: Tensor, known: Tensor, chosen: list[Tensor], size: int) -> Tensor:
    """Which values (R, V) of the next sub-token complete a code of `seen`; all of them in rows without any."""
    matches = seen >= 0
    for j, part in enumerate(chosen):
        matches = matches & (known[..., j] == part[:, None])
    counts = torch.zeros(len(seen), size, device=seen.device)
    counts.scatter_add_(1, known[..., len(chosen)], matches.float())
    return (counts > 0) | (seen < 0).all(1, keepdim=True)
