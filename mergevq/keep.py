"""Distributions of the kept-token count that training draws from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic

from mergevq.config import config
from mergevq.errors import InputError
from mergevq.number_types import Count, NonNegative, Positive, ProperFraction
from mergevq.rng import step_uniform


@config
class _KeepConfig:
    """The candidate kept counts, given once: as `keep` = (lowest, highest) or `merge_ratio` = (lowest, highest),
    with 0 keeping every token, or listed in `counts` or `merge_ratios`. Ratios hold at any resolution."""

    keep: tuple[Count, Count] | None = None
    merge_ratio: tuple[ProperFraction, ProperFraction] | None = None
    counts: tuple[Count, ...] | None = None
    merge_ratios: tuple[ProperFraction, ...] | None = None
    square: bool = True  # of a range, only the square counts (as published)

    def __post_init__(self) -> None:
        given = [
            name
            for name in ("keep", "merge_ratio", "counts", "merge_ratios")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"give the kept counts once, as keep, merge_ratio, counts or merge_ratios (got: {', '.join(given) or 'none'})"
            )
        ends = self.keep or self.merge_ratio
        if ends and ends[0] > ends[1]:
            raise ValueError(f"{given[0]} {list(ends)} must be [lowest, highest]")
        if not (ends or self.counts or self.merge_ratios):
            raise ValueError(f"{given[0]} is empty")

    def candidates(self, grid_tokens: int) -> tuple[int, ...]:
        """The kept counts that can be drawn at a grid of N tokens, ascending. Raises `InputError` if there is none."""
        if self.counts or self.merge_ratios:
            listed = self.counts or tuple(
                max(1, round(grid_tokens * (1 - ratio))) for ratio in self.merge_ratios or ()
            )
            return tuple(sorted(set(listed)))
        if self.keep:
            low, high = self.keep
        else:
            assert self.merge_ratio
            low, high = (max(1, round(grid_tokens * (1 - ratio))) for ratio in reversed(self.merge_ratio))
        found = tuple(k for k in range(low, high + 1) if not self.square or math.isqrt(k) ** 2 == k)
        if not found:
            raise InputError(
                f"no square count lies between {low} and {high}: widen the range or set square to false"
            )
        return found

    def probabilities(self, grid_tokens: int) -> tuple[float, ...]:
        """The probability of each candidate; sums to 1."""
        weights = self._weights(self.candidates(grid_tokens), grid_tokens)
        return tuple(weight / sum(weights) for weight in weights)

    def _weights(self, candidates: Sequence[int], grid_tokens: int) -> list[float]:
        raise NotImplementedError


@config
class ExponentialKeepConfig(_KeepConfig):
    """rate * exp(-rate * i) + floor at the i-th candidate: mostly the fewest tokens (Figure 5; R, and G stage 2)."""

    kind: Literal["exponential"] = "exponential"
    rate: Positive = 2.0
    floor: NonNegative = 0.1

    def _weights(self, candidates: Sequence[int], grid_tokens: int) -> list[float]:
        return [self.rate * math.exp(-self.rate * i) + self.floor for i in range(len(candidates))]


@config
class GaussianKeepConfig(_KeepConfig):
    """exp(-(i - p)^2 / (2 sigma^2)) + floor at the i-th candidate, p the candidate nearest to the peak (G+R, G stage 1)."""

    kind: Literal["gaussian"] = "gaussian"
    peak: Count | None = None  # a count; or
    peak_merge_ratio: ProperFraction | None = None
    sigma: Positive = 0.5  # in candidates
    floor: NonNegative = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.peak is None) == (self.peak_merge_ratio is None):
            raise ValueError("give the peak once, as peak (a count) or peak_merge_ratio")

    def _weights(self, candidates: Sequence[int], grid_tokens: int) -> list[float]:
        peak = self.peak if self.peak is not None else grid_tokens * (1 - (self.peak_merge_ratio or 0))
        centre = min(range(len(candidates)), key=lambda i: abs(candidates[i] - peak))
        return [
            math.exp(-((i - centre) ** 2) / (2 * self.sigma**2)) + self.floor for i in range(len(candidates))
        ]


@config
class UniformKeepConfig(_KeepConfig):
    """Every candidate with the same probability."""

    kind: Literal["uniform"] = "uniform"

    def _weights(self, candidates: Sequence[int], grid_tokens: int) -> list[float]:
        return [1.0] * len(candidates)


@config
class ListedKeepConfig(_KeepConfig):
    """Each listed count, with a probability proportional to how often it is listed."""

    kind: Literal["list"] = "list"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.counts or self.merge_ratios):
            raise ValueError("a list needs counts or merge_ratios")

    def _weights(self, candidates: Sequence[int], grid_tokens: int) -> list[float]:
        listed = self.counts or tuple(
            max(1, round(grid_tokens * (1 - ratio))) for ratio in self.merge_ratios or ()
        )
        return [float(listed.count(candidate)) for candidate in candidates]


KeepDistributionConfig = Annotated[
    ExponentialKeepConfig | GaussianKeepConfig | UniformKeepConfig | ListedKeepConfig,
    pydantic.Field(discriminator="kind"),
]


def draw(distribution: _KeepConfig, grid_tokens: int, *, seed: int, step: int) -> int:
    """The kept count of an optimizer step: a function of (seed, step) alone, the same on every rank and machine."""
    cumulative = np.cumsum(distribution.probabilities(grid_tokens))
    index = int(np.searchsorted(cumulative, step_uniform(seed, step) * cumulative[-1], side="right"))
    return distribution.candidates(grid_tokens)[index]


def published(
    variant: Literal["g", "gr", "r"], stage: Literal[1, 2] = 1
) -> ExponentialKeepConfig | GaussianKeepConfig:
    """The distribution of Figure 5 for a variant and stage, with the released sigma, rate and floors."""
    match variant, stage:
        case "r", _:
            return ExponentialKeepConfig(keep=(36, 100))
        case "gr", 1:
            return GaussianKeepConfig(keep=(121, 225), peak=144)
        case "gr", 2:
            return GaussianKeepConfig(keep=(144, 256), peak=144)
        case "g", 1:
            return GaussianKeepConfig(keep=(225, 400), peak=256)
        case "g", 2:
            return ExponentialKeepConfig(keep=(256, 1024))
    raise InputError(f"no published distribution for '{variant}' stage {stage}: g, gr or r, stage 1 or 2")
