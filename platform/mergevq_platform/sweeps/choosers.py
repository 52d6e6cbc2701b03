"""Choosers, which decide a walk through a space before any trial has run: grid, random draws, a population's changes.

Optuna has samplers of these names, but none that draws what is drawn here: its `GridSampler` knows no conditional
parameters and its `BruteForceSampler` shuffles; its `RandomSampler` consumes one stream, where a trial's draw is here a
function of (seed, number) alone; population-based training it has not. TPE is Optuna's own: see `tuning.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mergevq.errors import InputError
from mergevq.rng import generator_at
from mergevq_platform.sweeps.space import (
    Choice,
    Domain,
    Integer,
    Params,
    RealRange,
    Space,
    Value,
    labels,
    walked,
)

RESAMPLED_SHARE = 0.25  # of the parameters that a population's exploration draws anew (Jaderberg et al. 2017, as in Ray Tune)
FACTORS = (0.8, 1.2)  # by which it changes the other numbers


def grid(space: Space) -> list[Params]:
    """Every combination, conditional parts included. Raises `InputError` for a space with a range in it."""
    return _combinations(space, _every_value)


def corners(space: Space) -> list[Params]:
    """Every combination of options and ends of ranges."""
    return _combinations(space, _ends)


def draw(space: Space, *, seed: int, number: int) -> Params:
    """The `number`-th random choice: a function of (seed, number) alone."""
    generator = generator_at(seed, number)
    return walked(space, lambda _, domain: _drawn(domain, generator))[1]


def perturbed(space: Space, params: Params, *, seed: int) -> Params:
    """`params` changed a little, as population-based training explores: a quarter drawn anew, other numbers times 0.8 or 1.2."""
    generator = np.random.default_rng(seed)

    def decide(name: str, domain: Domain) -> Value:
        if name not in params or generator.random() < RESAMPLED_SHARE:
            return _drawn(domain, generator)
        if isinstance(domain, Choice):
            return params[name]
        moved = float(params[name]) * float(generator.choice(FACTORS))
        return min(max(round(moved) if isinstance(domain, Integer) else moved, domain.low), domain.high)

    return walked(space, decide)[1]


def domains(space: Space) -> dict[str, Domain]:
    """The domain of every parameter, those of conditional parts included."""
    found: dict[str, Domain] = {}

    def values(name: str, domain: Domain) -> Sequence[Value]:
        found[name] = domain
        # Whatever a range comes to, the same parameters follow.
        return labels(domain) if isinstance(domain, Choice) else (domain.low,)

    _combinations(space, values)
    return found


def logarithmic(space: Space) -> set[str]:
    """The names of the parameters that are drawn evenly in their logarithm."""
    return {name for name, domain in domains(space).items() if isinstance(domain, RealRange) and domain.log}


def _combinations(space: Space, values: Callable[[str, Domain], Sequence[Value]]) -> list[Params]:
    """Every walk through the space, where a parameter takes each of its `values`; the last parameter changes fastest."""
    found: list[Params] = []
    waiting: list[Params] = [{}]  # beginnings of walks
    while waiting:
        params, others = _first(space, waiting.pop(), values)
        found.append(params)
        waiting += others
    return found


def _first(
    space: Space, given: Params, values: Callable[[str, Domain], Sequence[Value]]
) -> tuple[Params, list[Params]]:
    """The walk that begins as `given` and goes on with first values; and the other beginnings, the next one last."""
    taken = dict(given)
    others: list[Params] = []

    def decide(name: str, domain: Domain) -> Value:
        if name not in given:
            first, *rest = values(name, domain)
            others.extend({**taken, name: value} for value in reversed(rest))
            taken[name] = first
        return taken[name]

    return walked(space, decide)[1], others


def _every_value(name: str, domain: Domain) -> Sequence[Value]:
    match domain:
        case Choice():
            return labels(domain)
        case Integer(low, high):
            return range(low, high + 1)
        case RealRange():
            raise InputError(
                f"a grid needs choices, but '{name}' is a range: list values, or use random or TPE search"
            )


def _ends(name: str, domain: Domain) -> Sequence[Value]:
    if not isinstance(domain, Choice):
        return domain.low, domain.high
    first, *rest = labels(domain)
    return first, *reversed(rest)  # the order in which a sweep's tables name the parameters of its options


def _drawn(domain: Domain, generator: np.random.Generator) -> Value:
    match domain:
        case Choice():
            names = labels(domain)
            return names[int(generator.integers(len(names)))]
        case RealRange(low, high, log):
            if log:
                return math.exp(generator.uniform(math.log(low), math.log(high)))
            return float(generator.uniform(low, high))
        case Integer(low, high):
            return int(generator.integers(low, high + 1))
