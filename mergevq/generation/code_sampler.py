"""The codes of one decoding step: guided logits, and a draw by each code's own random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergevq.generation.code_heads import FactorisedCodes
from mergevq.generation.sampling_config import GuidanceConfig


@dataclass(frozen=True)
class CodeSampler:
    """The sub-tokens' heads with their sampling settings and the guidance.

    With guidance a batch holds the conditional half first and the unconditional half after it.
    """

    tokens: FactorisedCodes
    settings: list[tuple[float, int, float]]  # temperature, top_k, top_p per sub-token
    guidance: GuidanceConfig

    def scales(self, fractions: list[float], device: torch.device) -> Tensor:
        """The guidance's scales (T, S) float64 at the steps with these shares of tokens decoded."""
        rows = [self.guidance.scales(fraction, len(self.settings)) for fraction in fractions]
        return torch.tensor(rows, dtype=torch.float64, device=device)

    def draw(self, hidden: Tensor, uniforms: Tensor, scales: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Indices (R,) int64 for hidden (R, D), or (2 R, D) with the unconditional half.

        `uniforms` (R, S) float64 in [0, 1); `scales` (S,) of the guidance; `allowed` (R, C): the only codes that can be
        drawn, -1 for none. Rows without any allowed code can draw all.
        """
        halves = hidden.shape[0] // uniforms.shape[0]
        allowed_parts = None if allowed is None else self.tokens.split(allowed.clamp(min=0))
        drawn: list[Tensor] = []

        def choose(j: int, logits: Tensor) -> Tensor:
            if halves == 2:
                conditional, unconditional = logits.chunk(2)
                scale = scales[j].to(logits.dtype)
                guided = unconditional + scale * (conditional - unconditional)
                logits = torch.where(scale == 1, conditional, guided)  # at 1 not even rounding differs
            if allowed is not None and allowed_parts is not None:
                possible = _possible(allowed, allowed_parts, drawn, logits.shape[-1])
                logits = logits.masked_fill(~possible, -torch.inf)
            drawn.append(draw_sub_token(logits, uniforms[:, j], *self.settings[j]))
            return drawn[-1].repeat(halves)

        parts = self.tokens.decode(hidden, choose)
        return self.tokens.join(parts[: uniforms.shape[0]])


def draw_sub_token(logits: Tensor, uniforms: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits (..., V) and numbers (...) float64 in [0, 1) -> a value (...) int64 in [0, V), by inverting the
    distribution function; probabilities are summed in float64."""
    if temperature == 0:
        return logits.argmax(-1)
    values, names = logits.double() / temperature, None
    if top_k or top_p < 1:
        values, names = values.sort(dim=-1, descending=True, stable=True)
        values = values[..., : top_k or None]
    cumulative = values.softmax(-1).cumsum(-1)
    if top_p < 1:
        # A value stays if those before it do not reach p yet; the first always does.
        before = cumulative[..., :-1]
        kept = (before < top_p * cumulative[..., -1:]).sum(-1, keepdim=True)
        total = cumulative.gather(-1, kept)
    else:
        total = cumulative[..., -1:]
    # Strictly below the total, so that rounding never reaches a value of no probability.
    point = (uniforms[..., None] * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    rank = (cumulative <= point).sum(-1)
    return rank if names is None else names.gather(-1, rank[..., None])[..., 0]


def _possible(allowed: Tensor, allowed_parts: Tensor, drawn: list[Tensor], size: int) -> Tensor:
    """The values (R, V) bool of the next sub-token that complete an allowed code; all in rows without any."""
    matches = allowed >= 0
    for j, part in enumerate(drawn):
        matches = matches & (allowed_parts[..., j] == part[:, None])
    counts = torch.zeros(len(allowed), size, device=allowed.device)
    counts.scatter_add_(1, allowed_parts[..., len(drawn)], matches.float())
    return (counts > 0) | (allowed < 0).all(1, keepdim=True)
