"""Small generators whose weights are random enough for every part to matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mergevq.config import merged, to_tree
from mergevq.generation import Generated, Generator, build_generator, generator_preset, parse_generator


def _random_generator(
    kind: str, changes: dict[str, Any] | None = None, *, seed: int = 1, spread: float = 0.6
) -> Generator:
    torch.manual_seed(seed)
    tree = to_tree(generator_preset(f"test_{kind}"))
    generator = build_generator(parse_generator(merged(tree, changes or {}))).double().eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if parameter.ndim > 1 and "heads" not in name:
                parameter.mul_(16)  # at 0.02 a class or a neighbour changes hardly anything
        for head in generator.tokens.heads:
            head.get_parameter("weight").normal_(std=spread)
    return generator


def _generate(generator: Generator, labels: Tensor, **options: Any) -> Generated:
    options = {"sample_ids": torch.arange(len(labels)), "seed": 0, **options}
    if generator.config.kind != "raster":
        options.setdefault("keep", 9)
    return generator.generate(labels, **options)


@pytest.fixture(scope="session")
def random_generator() -> Callable[..., Generator]:
    """`random_generator(kind, changes, seed=, spread=)`: a float64 generator in eval mode over 16 cells of 6-bit
    codes; `spread` is the deviation of the heads' weights."""
    return _random_generator


@pytest.fixture(scope="session")
def generate() -> Callable[..., Generated]:
    """`generate(generator, labels, **options)`: samples 0, 1, ... of seed 0, with 9 kept tokens where that means anything."""
    return _generate
