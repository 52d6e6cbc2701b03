"""What the tests of generators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import random_generators
from mergevq.generation import Generated, Generator, sample


def _generate(generator: Generator, labels: Tensor, **options: Any) -> Generated:
    options = {"sample_ids": torch.arange(len(labels)), "seed": 0, **options}
    if generator.config.kind != "raster":
        options.setdefault("keep", 9)
    return sample(generator, labels, **options)


@pytest.fixture(scope="session")
def random_generator() -> Callable[..., Generator]:
    """`random_generator(kind, changes, seed=, spread=)`: a float64 generator in eval mode over 16 cells of 6-bit
    codes; `spread` is the deviation of the heads' weights."""
    return random_generators.random_generator


@pytest.fixture(scope="session")
def generate() -> Callable[..., Generated]:
    """`generate(generator, labels, **options)`: samples 0, 1, ... of seed 0, with 9 kept tokens where that means anything."""
    return _generate
