"""Choosing a sub-token from logits with numbers that belong to one place of one sample."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pydantic
import torch
from torch import Tensor

from mergevq.config import config
from mergevq.errors import InputError

Temperature = Annotated[float, pydantic.Field(ge=0)]
TopK = Annotated[int, pydantic.Field(ge=0)]
TopP = Annotated[float, pydantic.Field(gt=0, le=1)]


@config
class SamplingConfig:
    """How sub-tokens are drawn: one value for all of them, or one per sub-token.

    `temperature` divides the logits, 0 takes the most likely; then `top_k` keeps the k most likely (0: all), then
    `top_p` the fewest of those whose probabilities reach p.
    """

    temperature: Temperature | tuple[Temperature, ...] = 1.0
    top_k: TopK | tuple[TopK, ...] = 0
    top_p: TopP | tuple[TopP, ...] = 1.0

    def per_sub_token(self, count: int) -> list[tuple[float, int, float]]:
        """(temperature, top_k, top_p) of each of `count` sub-tokens. Raises `InputError` for tuples of another length."""
        columns = [per_sub_token(getattr(self, n), count, n) for n in ("temperature", "top_k", "top_p")]
        return list(zip(*columns, strict=True))


def per_sub_token(value: float | tuple[float, ...], count: int, name: str) -> tuple:
    """`value` as one per sub-token. Raises `InputError` if it is a tuple of another length."""
    values = value if isinstance(value, tuple) else (value,) * count
    if len(values) != count:
        raise InputError(
            f"{name} has {len(values)} values, the codes {count} sub-tokens: give one, or {count}"
        )
    return values


def choose(logits: Tensor, uniforms: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
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


def uniforms(seed: int, sample_ids: Tensor, count: int, *, stream: int) -> Tensor:
    """Numbers (B, count) float64 in [0, 1) on the CPU: row b is a function of (seed, sample_ids[b], stream) alone."""
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, sample], counter=[0, 0, 0, stream])).random(count)
        for sample in sample_ids.tolist()
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, count, dtype=torch.float64)
