"""Random numbers by address: the same key gives the same numbers, on any machine, in any order of asking.

One engine, the raw words of Philox, whose values NumPy guarantees; methods of `np.random.Generator` may change between
NumPy releases, and a resumed run must see the numbers it began with. An address is a key (two words) and a counter
(three). Training, data and generation each fill them in their own way, which trained models and stored orders depend on:

- `words`, `uniforms`, `permutation`: key (seed, stream), counter up to three integers; data order, views, splits.
- `step_uniform`: key (seed), counter (0, 0, step); kept counts.
- `sample_uniforms`: key (seed, sample), counter (0, 0, stream); the codes of generated samples.

Three more users need a seed or a generator of a library and not numbers: `step_seed` for PyTorch's generators,
`generator_at` for a sweep's trials, `seeded_permutation` for the metrics' subsets. They mix addresses by NumPy's own
hash, as the numbers of before did.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

MASK = 2**64 - 1


class Stream(IntEnum):
    """Independent families of numbers under one seed."""

    GROUP_ORDER = 1
    WINDOW_ORDER = 2
    IMAGE_VIEW = 3
    TEACHER_VIEW = 4
    STUDENT_VIEW = 5
    PACK_ORDER = 6
    SPLIT = 7
    POSITION_BASELINE = 8
    AUGMENT = 9
    ERASE = 10
    CODE_PERTURBATION = 11
    SOURCE_PERTURBATION = 12
    BOOTSTRAP = 13


def words(count: int, seed: int, stream: Stream, *address: int) -> np.ndarray:
    """`count` uniform uint64 words of the address (at most three integers) in a stream of `seed`."""
    return _philox(count, (seed, int(stream)), address)


def uniforms(count: int, seed: int, stream: Stream, *address: int) -> np.ndarray:
    """`count` float64 numbers in [0, 1)."""
    return _unit(words(count, seed, stream, *address))


def permutation(count: int, seed: int, stream: Stream, *address: int) -> np.ndarray:
    """A permutation (count,) int64 of 0 .. count-1."""
    return np.argsort(words(count, seed, stream, *address), kind="stable").astype(np.int64)


def step_uniform(seed: int, step: int) -> float:
    """One float64 number in [0, 1) of an optimizer step, the same on every rank; `seed` is at least 0."""
    return float(_unit(_philox(1, (seed, seed >> 64), (0, 0, step)))[0])


def sample_uniforms(seed: int, sample_ids: Tensor, count: int, *, stream: int) -> Tensor:
    """Numbers (B, count) float64 in [0, 1) on the CPU: row b is a function of (seed, sample_ids[b], stream) alone."""
    import torch  # addresses of data and of sweeps need NumPy alone

    rows = [_unit(_philox(count, (seed, sample), (0, 0, stream))) for sample in sample_ids.tolist()]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, count, dtype=torch.float64)


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own, below 2^63, for every (seed, step, rank): dropout and drop path, which differ by rank."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def generator_at(seed: int, number: int) -> np.random.Generator:
    """NumPy's generator of the `number`-th draw under `seed`, for draws of several kinds."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, number]))


def seeded_permutation(count: int, *address: int) -> np.ndarray:
    """A permutation (count,) int64 of 0 .. count-1 by NumPy's default generator; integers of the address are at least 0."""
    return np.random.default_rng(address).permutation(count)


def _philox(count: int, key: tuple[int, int], address: tuple[int, ...]) -> np.ndarray:
    assert len(address) <= 3
    # The lowest word of the counter runs over the words of one address.
    counter = [0, *(part & MASK for part in address), *(0,) * (3 - len(address))]
    bits = np.random.Philox(
        key=np.array([part & MASK for part in key], dtype=np.uint64),
        counter=np.array(counter, dtype=np.uint64),
    )
    return bits.random_raw(count)


def _unit(raw: np.ndarray) -> np.ndarray:
    return (raw >> np.uint64(11)) * 2.0**-53
