"""Small generators whose weights are random enough for every part to matter."""

from __future__ import annotations

from typing import Any

import torch

from mergevq.config import merged, to_tree
from mergevq.generation import Generator, build_generator, generator_preset, parse_generator


def random_generator(
    kind: str, changes: dict[str, Any] | None = None, *, seed: int = 1, spread: float = 0.6
) -> Generator:
    """A float64 generator in eval mode over 16 cells of 6-bit codes; `spread` is the deviation of the heads' weights."""
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
