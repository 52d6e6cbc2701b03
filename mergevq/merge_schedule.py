"""The merge schedule: how many tokens each layer merges so that exactly `keep` remain."""

from __future__ import annotations

from functools import lru_cache

from mergevq.errors import InputError


@lru_cache(maxsize=4096)
def merge_schedule(grid_tokens: int, keep: int, depth: int, inflection: float = -0.5) -> tuple[int, ...]:
    """Tokens that each of `depth` layers merges so that exactly `keep` of `grid_tokens` remain ([CLS] apart).

    The published rule (appendix A.1 as released: linear over layers with inflection -0.5, remainder on the first
    layer), clipped per layer to [0, (t - 1) // 2] for t tokens with [CLS]; what does not fit moves to the next layer
    that has room. Raises `InputError` naming the reachable range for a count that no schedule reaches.
    """
    require_reachable(grid_tokens, keep, depth)
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


def require_reachable(grid_tokens: int, keep: int, depth: int) -> None:
    """Raise `InputError` naming the reachable range for a kept count that `depth` merging layers cannot reach."""
    within = reachable(grid_tokens, depth)
    if keep not in within:
        raise InputError(
            f"cannot keep {keep} of {grid_tokens} tokens with {depth} layers: "
            f"the reachable counts are {within.start} to {within.stop - 1}"
        )


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
