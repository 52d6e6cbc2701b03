"""Random numbers by address: the same key gives the same numbers, on any machine, in any order of asking.

Built on the raw words of Philox, whose values NumPy guarantees; `Generator` methods may change between NumPy releases,
and a resumed run must see the order it began with.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

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


def words(count: int, seed: int, stream: Stream, *address: int) -> np.ndarray:
    """`count` uniform uint64 words of the address (at most three integers) in a stream of `seed`."""
    assert len(address) <= 3
    counter = [0, *(part & MASK for part in address), *(0,) * (3 - len(address))]
    key = np.array([seed & MASK, int(stream)], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array(counter, dtype=np.uint64)).random_raw(count)


def uniforms(count: int, seed: int, stream: Stream, *address: int) -> np.ndarray:
    """`count` float64 numbers in [0, 1)."""
    return (words(count, seed, stream, *address) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, seed: int, stream: Stream, *address: int) -> np.ndarray:
    """A permutation (count,) int64 of 0 .. count-1."""
    return np.argsort(words(count, seed, stream, *address), kind="stable").astype(np.int64)
