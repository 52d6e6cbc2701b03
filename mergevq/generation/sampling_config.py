"""Sampling configurations: temperature, top-k, top-p, and classifier-free guidance on a schedule."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic

from mergevq.config import config
from mergevq.errors import InputError
from mergevq.number_types import Fraction, NonNegative, Positive, WholeNumber

Temperature = NonNegative
TopK = WholeNumber
TopP = Annotated[float, pydantic.Field(gt=0, le=1)]


@config
class SamplingConfig:
    """Temperature, top-k and top-p: one value for all sub-tokens, or one per sub-token.

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


@config
class GuidanceConfig:
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional), the scale on a schedule.

    `scale` s is one for all sub-tokens or one for each, 1 being no guidance; f is the share of tokens decoded.
    `constant`: s throughout (LlamaGen). `linear`: 1 + (s - 1) f (RandAR). `power_cosine`:
    1 + (s - 1) (1 - cos(pi f^power)) / 2 (RAR). Outside `interval`, where from <= f < to fails, the scale is 1.
    """

    scale: NonNegative | tuple[NonNegative, ...] = 1.0
    schedule: Literal["constant", "linear", "power_cosine"] = "constant"
    power: Positive = 2.75
    interval: tuple[Fraction, Fraction] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.interval[0] >= self.interval[1]:
            raise ValueError(f"interval {list(self.interval)} must be [from, to] with from < to")

    def scales(self, fraction: float, count: int) -> tuple[float, ...]:
        """The scale of each of `count` sub-tokens when `fraction` in [0, 1) of the tokens is decoded.

        Raises `InputError` if the scales are given for another number of sub-tokens.
        """
        low, high = self.interval
        if not low <= fraction < high:
            return (1.0,) * count
        match self.schedule:
            case "constant":
                share = 1.0
            case "linear":
                share = fraction
            case "power_cosine":
                share = (1 - math.cos(math.pi * fraction**self.power)) / 2
        return tuple(1 + (scale - 1) * share for scale in per_sub_token(self.scale, count, "guidance.scale"))


def guided_steps(guidance: GuidanceConfig, fractions: list[float], count: int) -> range:
    """The steps, from the first to the last, whose scale is not 1 for some sub-token."""
    guided = [
        step
        for step, fraction in enumerate(fractions)
        if any(scale != 1 for scale in guidance.scales(fraction, count))
    ]
    return range(guided[0], guided[-1] + 1) if guided else range(0)


def per_sub_token(value: float | tuple[float, ...], count: int, name: str) -> tuple:
    """`value` as one per sub-token. Raises `InputError` if it is a tuple of another length."""
    values = value if isinstance(value, tuple) else (value,) * count
    if len(values) != count:
        raise InputError(
            f"{name} has {len(values)} values, the codes {count} sub-tokens: give one, or {count}"
        )
    return values
