"""What an allocator saves at equal quality, beside one count for all images, with intervals over images.

All of it is arithmetic on two arrays: the quality of every image at every count of the menu, and the counts that were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from mergevq.rng import Stream, uniforms

Name = TypeVar("Name")

RESAMPLES = 1000  # of the images, for intervals of 95%
AT_ONCE = 2_000_000  # drawn images that are held at once


class Interval(NamedTuple):
    """A value, and the 95% interval of it over resampled images."""

    value: float
    low: float
    high: float


class Saving(NamedTuple):
    """An allocator's choice beside one count for all; see `savings`."""

    equal_tokens: Interval  # one count for all that has the same quality
    saved_tokens: Interval  # that, less the mean of the chosen counts
    gain: Interval  # in quality, over one count for all at the same mean
    blind_gain: Interval  # in quality, over the best mixture of two counts that does not look at the images


def tokens_at(quality: np.ndarray, menu: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The fewest tokens (R,) of one count for all that reach a quality (R,): linear between the counts (M,) of the menu.

    `means` (R, M): the mean quality at each count, which need not rise everywhere: the first crossing counts. A quality beyond
    the menu's best has the menu's last count, one below its least the first: what is saved is then no more than that.
    """
    reached = means >= quality[:, None]
    at = np.where(reached.any(1), reached.argmax(1), len(menu) - 1)
    rows = np.arange(len(at))
    before = np.maximum(at - 1, 0)
    low, high = means[rows, before], means[rows, at]
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(reached.any(1), np.clip((quality - low) / rise, 0, 1), 1.0)
    return menu[before] + share * (menu[at] - menu[before])


def quality_at(tokens: np.ndarray, menu: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The quality (R,) of one count for all at a mean of so many tokens (R,): linear between the counts of the menu."""
    at = np.clip(np.searchsorted(menu, tokens), 1, max(1, len(menu) - 1))
    if len(menu) == 1:
        return means[:, 0]
    rows = np.arange(len(at))
    share = (tokens - menu[at - 1]) / (menu[at] - menu[at - 1])
    return (1 - share) * means[rows, at - 1] + share * means[rows, at]


def mixture_at(tokens: np.ndarray, menu: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The best quality (R,) that a mixture of two counts has at a mean of so many tokens (R,), whichever images get which.

    It is the upper concave hull of the mean qualities (R, M): what an allocator gains without a look at the images.
    """
    best = np.full(len(tokens), -np.inf)
    for i, few in enumerate(menu):
        for j, many in enumerate(menu[i:], i):
            within = (few <= tokens) & (tokens <= many)
            share = (tokens - few) / (many - few) if many > few else np.zeros(len(tokens))
            mixed = (1 - share) * means[:, i] + share * means[:, j]
            best = np.where(within & (mixed > best), mixed, best)
    return best


def savings(
    menu: tuple[int, ...], quality: np.ndarray, chosen: Mapping[Name, np.ndarray], *, seed: int = 0
) -> dict[Name, Saving]:
    """What each choice saves, of images whose quality (B, M) at every count of the menu is known.

    `chosen`: counts (B,) of the menu by name. The intervals are those of 1,000 resamples of the images, the same ones for all names;
    the choice of an image is held fixed.
    """
    counts = np.array(menu, float)
    columns = [quality]
    for kept in chosen.values():
        at = np.searchsorted(menu, kept)
        columns.append(np.column_stack([quality[np.arange(len(kept)), at], kept]))
    values = np.column_stack(columns).astype(np.float64)
    samples = np.vstack([values.mean(0), resampled_means(values, seed)])
    means = samples[:, : len(menu)]
    found: dict[Name, Saving] = {}
    for number, name in enumerate(chosen):
        reached, tokens = samples[:, len(menu) + 2 * number], samples[:, len(menu) + 2 * number + 1]
        equal = tokens_at(reached, counts, means)
        found[name] = Saving(
            _interval(equal),
            _interval(equal - tokens),
            _interval(reached - quality_at(tokens, counts, means)),
            _interval(reached - mixture_at(tokens, counts, means)),
        )
    return found


def resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """The means (`RESAMPLES`, C) of values (B, C) over as many images drawn with replacement; draw r is a function of (seed, r)."""
    images = len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    block = max(1, AT_ONCE // max(1, images))
    for start in range(0, RESAMPLES, block):
        numbers = range(start, min(start + block, RESAMPLES))
        drawn = [
            (uniforms(images, seed, Stream.BOOTSTRAP, number) * images).astype(int) for number in numbers
        ]
        weights = np.stack([np.bincount(rows, minlength=images) for rows in drawn])
        means[start : start + len(numbers)] = weights @ values / images
    return means


def _interval(samples: np.ndarray) -> Interval:
    # The first is of the images themselves.
    low, high = np.percentile(samples[1:], (2.5, 97.5))
    return Interval(float(samples[0]), float(low), float(high))
