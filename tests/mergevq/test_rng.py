"""Random numbers by address: every part of it counts, and the numbers are those of the first release."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mergevq.rng import (
    Stream,
    generator_at,
    permutation,
    sample_uniforms,
    seeded_permutation,
    step_seed,
    step_uniform,
    uniforms,
    words,
)


def test_keyed_numbers_depend_on_every_part_of_their_address() -> None:
    keys = [(0, Stream.SPLIT, 1, 2, 3), (1, Stream.SPLIT, 1, 2, 3), (0, Stream.PACK_ORDER, 1, 2, 3)]
    keys += [(0, Stream.SPLIT, 2, 2, 3), (0, Stream.SPLIT, 1, 3, 3), (0, Stream.SPLIT, 1, 2, 4)]
    assert len({tuple(words(4, *key).tolist()) for key in keys}) == len(keys)
    numbers = uniforms(10_000, 0, Stream.SPLIT)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02
    assert sorted(permutation(100, 3, Stream.SPLIT).tolist()) == list(range(100))


def test_random_numbers_belong_to_seed_sample_and_stream() -> None:
    def rows(ids: list[int], seed: int = 7, stream: int = 0) -> Tensor:
        return sample_uniforms(seed, torch.tensor(ids), 50, stream=stream)

    together = rows([3, 10**12, 5])
    assert torch.equal(together[1], rows([10**12])[0])
    assert torch.equal(together, rows([3, 10**12, 5]))
    different = torch.cat([together, rows([3], seed=8), rows([3], stream=1)]).flatten()
    assert different.unique().numel() == different.numel()
    assert 0 <= different.min() < different.max() < 1
    # A longer row starts like a shorter one: a place's number does not depend on how many there are.
    assert torch.equal(sample_uniforms(7, torch.tensor([3]), 80, stream=0)[0, :50], together[0])


def test_the_numbers_never_change() -> None:
    assert words(2, 7, Stream.GROUP_ORDER, 1, 2).tolist() == [6488338661044970857, 13125974249237787969]
    assert permutation(6, 7, Stream.WINDOW_ORDER, 3).tolist() == [5, 2, 3, 4, 1, 0]
    assert step_uniform(7, 3) == 0.27019622095902107
    assert sample_uniforms(7, torch.tensor([5]), 1, stream=1).item() == 0.5844585136340464
    assert step_seed(7, 3, 1) == 6665335680343557524
    assert generator_at(7, 3).integers(1000) == 521
    assert seeded_permutation(6, 7, 3).tolist() == [4, 0, 3, 2, 5, 1]


def test_numbers_of_a_step_and_of_a_sample_are_those_of_numpys_generator() -> None:
    """Until now they were drawn so; a later NumPy may draw others, and these must stay."""
    for seed, number in ((0, 0), (7, 3), (2**63, 10**6)):
        philox = np.random.Philox(key=seed, counter=[0, 0, 0, number])
        assert step_uniform(seed, number) == np.random.Generator(philox).random()
    philox = np.random.Philox(key=[9, 12], counter=[0, 0, 0, 1])
    assert (
        sample_uniforms(9, torch.tensor([12]), 5, stream=1)[0].tolist()
        == np.random.Generator(philox).random(5).tolist()
    )
