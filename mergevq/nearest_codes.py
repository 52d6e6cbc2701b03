"""The nearest codes of a code, in closed form: neither a table of all codes nor a search over them.

LFQ and FSQ codes are points of a grid, a level in every channel, so that squared distances add up over channels: the
number of codes at each distance is a product of polynomials, and a code at a given distance is drawn channel by channel.
For LFQ the distance is the number of flipped bits (Hamming).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.quantize import FSQConfig, LFQConfig, QuantizerConfig


def check_neighbours(quantizer: QuantizerConfig, neighbours: int) -> None:
    """Raise `InputError` for a number of nearest codes that is not 1 to the size of the vocabulary."""
    if not 1 <= neighbours <= quantizer.vocabulary:
        raise InputError(
            f"neighbours is {neighbours}: a code has 1 (itself) to {quantizer.vocabulary} nearest codes of its vocabulary"
        )


def draw_nearest(quantizer: QuantizerConfig, indices: Tensor, uniforms: Tensor, neighbours: int) -> Tensor:
    """A random one of the `neighbours` nearest codes of each code, itself among them: indices (T,) int64 -> (T,).

    Every one of the nearest is as likely. Of codes that are equally far some may be within the number and some not; which
    ones is left to chance, for each token anew. `uniforms` (T, 1 + G) float64 in [0, 1) decide. Raises `InputError` as
    `check_neighbours`. Equation 4 of Qiu et al. 2025 (arXiv 2509.12474).
    """
    check_neighbours(quantizer, neighbours)
    if not len(indices):
        return indices
    tables = [table.to(indices.device) for table in level_distances(quantizer)]
    sizes = torch.tensor([len(table) for table in tables], device=indices.device)
    basis = torch.cat([sizes.new_ones(1), sizes[:-1].cumprod(0)])
    levels = (indices[:, None] // basis) % sizes
    # Levels whose distances to all others are the same numbers count alike: of LFQ there is one kind of code.
    kinds, kind = torch.unique(_kinds(tables, levels), dim=0, return_inverse=True)
    members = torch.zeros_like(kind).scatter_reduce_(
        0, kind, torch.arange(len(kind), device=kind.device), "amax", include_self=False
    )[: len(kinds)]
    ways = _ways(tables, levels[members], neighbours)
    within = ways[:, -1].cumsum(1)[kind]
    rank = (uniforms[:, 0] * neighbours).long().clamp(max=neighbours - 1)
    left = (within <= rank[:, None]).sum(1)  # the squared distance of the code of this rank
    found = torch.zeros_like(indices)
    for channel in reversed(range(len(tables))):
        distance = tables[channel][levels[:, channel]]  # (T, L) of each level
        rest = left[:, None] - distance
        count = ways[kind, channel].gather(1, rest.clamp(min=0)).where(rest >= 0, 0).cumsum(1)
        pick = torch.minimum((uniforms[:, 1 + channel] * count[:, -1]).long(), count[:, -1] - 1)
        level = (count <= pick[:, None]).sum(1)
        left = rest.gather(1, level[:, None]).squeeze(1)
        found += level * basis[channel]
    return found


@lru_cache(maxsize=8)
def level_distances(quantizer: QuantizerConfig) -> tuple[Tensor, ...]:
    """Squared distances (L, L) int64 between the levels of each channel, lowest digit of an index first.

    In one unit for all channels, in which they are whole numbers.
    """
    match quantizer:
        case LFQConfig():
            return (torch.tensor([[0, 1], [1, 0]]),) * quantizer.bits
        case FSQConfig():
            # Neighbouring levels are 1 / (levels // 2) apart.
            halves = [levels // 2 for levels in quantizer.levels]
            unit = math.lcm(*halves)
            grids = [
                torch.arange(levels) * (unit // half)
                for levels, half in zip(quantizer.levels, halves, strict=True)
            ]
            return tuple((grid[:, None] - grid).square() for grid in grids)


def _kinds(tables: list[Tensor], levels: Tensor) -> Tensor:
    # (T, G): the first level of the channel that has the same distances to all levels, in any order.
    columns = []
    for channel, table in enumerate(tables):
        ordered = table.sort(1).values
        first = (ordered[:, None] == ordered).all(2).int().argmax(1)
        columns.append(first[levels[:, channel]])
    return torch.stack(columns, 1)


def _ways(tables: list[Tensor], levels: Tensor, neighbours: int) -> Tensor:
    # (U, 1 + G, R) int64: how many ways the first c channels have to be at each squared distance below R from codes with
    # these levels (U, G). R is as far as `neighbours` codes reach, or a little more.
    furthest = sum(int(table.amax()) for table in tables) + 1
    reach = min(16, furthest)
    while True:
        ways = levels.new_zeros(len(levels), 1 + len(tables), reach)
        ways[:, 0, 0] = 1
        distances = torch.arange(reach, device=levels.device)
        for channel, table in enumerate(tables):
            before, moved = ways[:, channel], table[levels[:, channel]]
            for level in range(len(table)):
                rest = distances - moved[:, level, None]
                ways[:, channel + 1] += before.gather(1, rest.clamp(min=0)).where(rest >= 0, 0)
        if reach == furthest or bool((ways[:, -1].sum(1) >= neighbours).all()):
            return ways
        reach = min(2 * reach, furthest)
