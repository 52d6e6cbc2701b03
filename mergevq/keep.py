"""How many tokens to keep: the schedule over layers, and the distributions that training draws from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import pydantic

from mergevq.config import config
from mergevq.errors import InputError
from mergevq.rng import step_uniform


@lru_cache(maxsize=4096)
def merge_schedule(grid_tokens: int, keep: int, depth: int, inflection: float = -0.5) -> tuple[int, ...]:
    """Tokens that each of `depth` layers merges so that exactly `keep` of `grid_tokens` remain ([CLS] apart).

    The published rule (appendix A.1 as released: linear over layers with inflection -0.5, remainder on the first
    layer), clipped per layer to [0, (t - 1) // 2] for t tokens with [CLS]; what does not fit moves to the next layer
    that has room. Raises `InputError` naming the reachable range for a count that no schedule reaches.
    """
    within = reachable(grid_tokens, depth)
    if keep not in within:
        raise InputError(
            f"cannot keep {keep} of {grid_tokens} tokens with {depth} layers: "
            f"the reachable counts are {within.start} to {within.stop - 1}"
        )
    planned = _published(grid_tokens - keep, depth, inflection)
    schedule, tokens, carry = [], grid_tokens + 1, 0
    for layer, wish in enumerate(planned):
        most = (tokens - 1) // 2
        # Never leave more to the later layers than they can merge, nor merge more than is asked for in all.
        least = _least(tokens, depth - layer - 1, keep + 1)
        r = min(max(wish + carry, least, 0), most, tokens - 1 - keep)
        carry += wish - r
        tokens -= r
        schedule.append(r)
    assert tokens == keep + 1
    return tuple(schedule)


@lru_cache(maxsize=1024)
def reachable(grid_tokens: int, depth: int) -> range:
    """The kept counts that `depth` merging layers can reach from `grid_tokens`."""
    tokens = grid_tokens + 1
    for _ in range(depth):
        tokens -= (tokens - 1) // 2
    return range(tokens - 1, grid_tokens + 1)


def scaled_keep(keep: int, from_grid: int, to_grid: int) -> int:
    """The kept count of another grid at the same merge ratio, at least 1."""
    return max(1, round(keep * to_grid / from_grid))


def _least(tokens: int, later: int, goal: int) -> int:
    # The smallest r after which `later` layers, merging all they can, still come down to `goal`.
    low, high = 0, (tokens - 1) // 2
    while low < high:
        middle = (low + high) // 2
        if _lowest(tokens - middle, later) <= goal:
            high = middle
        else:
            low = middle + 1
    return low


@lru_cache(maxsize=65536)
def _lowest(tokens: int, layers: int) -> int:
    for _ in range(layers):
        tokens -= (tokens - 1) // 2
    return tokens


def _published(total: int, depth: int, inflection: float) -> list[int]:
    if depth == 1:
        return [total]
    best, gap, r = [0] * depth, total, 1
    while True:
        first = int(r * (1 - inflection))
        step = (2 * r - 2 * first) / (depth - 1)
        layers = [int(first + step * layer) for layer in range(depth)]
        if abs(sum(layers) - total) > gap:
            break
        if abs(sum(layers) - total) < gap:
            best, gap = layers, abs(sum(layers) - total)
        r += 1
    return [best[0] + total - sum(best), *best[1:]]


Ratio = Annotated[float, pydantic.Field(ge=0, lt=1)]
Count = Annotated[int, pydantic.Field(ge=1)]


@config
class _KeepConfig:
    """The kept counts that can be drawn, given once: as `keep` = (lowest, highest) or `merge_ratio` = (lowest, highest),
    with 0 keeping every token, or listed in `counts` or `merge_ratios`. Ratios hold at any resolution."""

    keep: tuple[Count, Count] | None = None
    merge_ratio: tuple[Ratio, Ratio] | None = None
    counts: tuple[Count, ...] | None = None
    merge_ratios: tuple[Ratio, ...] | None = None
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
    rate: Annotated[float, pydantic.Field(gt=0)] = 2.0
    floor: Annotated[float, pydantic.Field(ge=0)] = 0.1

    def _weights(self, candidates: Sequence[int], grid_tokens: int) -> list[float]:
        return [self.rate * math.exp(-self.rate * i) + self.floor for i in range(len(candidates))]


@config
class GaussianKeepConfig(_KeepConfig):
    """exp(-(i - p)^2 / (2 sigma^2)) + floor at the i-th candidate, p the candidate nearest to the peak (G+R, G stage 1)."""

    kind: Literal["gaussian"] = "gaussian"
    peak: Count | None = None  # a count; or
    peak_merge_ratio: Ratio | None = None
    sigma: Annotated[float, pydantic.Field(gt=0)] = 0.5  # in candidates
    floor: Annotated[float, pydantic.Field(ge=0)] = 0.05

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
    """Every candidate equally often."""

    kind: Literal["uniform"] = "uniform"

    def _weights(self, candidates: Sequence[int], grid_tokens: int) -> list[float]:
        return [1.0] * len(candidates)


@config
class ListedKeepConfig(_KeepConfig):
    """Each listed count as often as it is listed."""

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
