"""Importance of parameters: the share of an objective's variance that each explains alone.

Main effects of a functional ANOVA over a random forest (Hutter et al. 2014), taken of the forest's mean prediction. Every range is
even here: hand over the logarithm of what was drawn evenly in its logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mergevq.rng import generator_at

TREES = 64
POINTS = 200  # at which the effect of a range is read
RESAMPLES, SHUFFLES, INTERVAL_TREES, INTERVAL_POINTS = 100, 25, 8, 32  # of an interval
MOST_LEAVES = 64  # of a tree of an interval, about: thousands of trials need no leaf each


def main_effects(parameters: Mapping[str, Sequence[object]], objective: Sequence[float]) -> dict[str, float]:
    """Parameter -> its share of the sum of main effects, the largest first; `parameters` holds a value for every trial.

    Numbers are ranges from their least to their largest, anything else is a choice of equal options. Parameters with one value
    are left out; empty where nothing varies.
    """
    from sklearn.ensemble import RandomForestRegressor

    columns, points = _encoded(parameters)
    target = np.asarray(objective, dtype=np.float64)
    if not columns or np.ptp(target) == 0:
        return {}
    # Of one column, drawn anew for every split: otherwise the strongest parameter takes all of them, and the share of the others.
    forest = RandomForestRegressor(TREES, max_features=1, random_state=0)
    forest.fit(np.hstack(list(columns.values())), target)
    effects = _effects([_marginals(tree.tree_, list(points.values())) for tree in forest.estimators_])
    total = sum(effects)
    shares = {name: effect / total for name, effect in zip(points, effects, strict=True)} if total else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def intervals(
    parameters: Mapping[str, Sequence[object]], objective: Sequence[float], choices: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """Parameter -> the 95 % interval of its share beyond chance, by a bootstrap over trials; `choices` numbers each trial's choice.

    A resample draws choices with all their repetitions and grows trees on them. Chance is the mean share of the parameter where its
    values are shuffled over the choices (Breiman 2001), the others as they are. The interval holds 0 where the parameter cannot be
    told apart from none.
    """
    columns, points = _encoded(parameters, INTERVAL_POINTS)
    target, choice = np.asarray(objective, dtype=np.float64), np.asarray(choices)
    if not columns or np.ptp(target) == 0:
        return {}
    trials = [np.flatnonzero(choice == number) for number in np.unique(choice)]
    read = list(points.values())
    shares: list[np.ndarray] = []
    chances: list[list[float]] = []
    for resample in range(RESAMPLES):
        generator = generator_at(0, resample)
        drawn = np.concatenate([trials[at] for at in generator.integers(len(trials), size=len(trials))])
        own = np.array(_grown(list(columns.values()), target, drawn, read, resample))
        if not own.sum() > 0:
            continue
        shares.append(own / own.sum())
        if len(chances) < SHUFFLES:
            chances.append([])
            for at, column in enumerate(columns.values()):
                shuffled = np.empty_like(column)
                for mine, other in zip(trials, generator.permutation(len(trials)), strict=True):
                    shuffled[mine] = column[trials[other][0]]
                table = [shuffled if at == place else real for place, real in enumerate(columns.values())]
                chances[-1].append(_grown(table, target, drawn, read, resample)[at] / own.sum())
    if not shares:
        return {}
    low, high = np.percentile(np.array(shares), [2.5, 97.5], axis=0) - np.mean(chances, axis=0)
    return {name: (float(low[at]), float(high[at])) for at, name in enumerate(points)}


def _grown(
    columns: Sequence[np.ndarray],
    target: np.ndarray,
    rows: np.ndarray,
    points: Sequence[np.ndarray],
    seed: int,
) -> list[float]:
    """The effects of trees on some rows of a table."""
    from sklearn.tree import DecisionTreeRegressor

    table, values = np.hstack(columns)[rows], target[rows]
    smallest = max(1, len(target) // MOST_LEAVES)
    trees = [
        DecisionTreeRegressor(
            max_features=1, min_samples_leaf=smallest, random_state=seed * INTERVAL_TREES + number
        )
        for number in range(INTERVAL_TREES)
    ]
    return _effects([_marginals(tree.fit(table, values).tree_, points) for tree in trees])


def _encoded(
    parameters: Mapping[str, Sequence[object]], most_points: int = POINTS
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Of each parameter that varies: its columns (trials, C), and the points (P, C) at which its effect is read."""
    columns: dict[str, np.ndarray] = {}
    points: dict[str, np.ndarray] = {}
    for name, values in parameters.items():
        if len({str(value) for value in values}) < 2:
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            columns[name] = np.asarray(values, dtype=np.float64)[:, None]
            whole = all(isinstance(value, int) for value in values)
            points[name] = _range(columns[name], whole=whole, most=most_points)
        else:
            options = list(dict.fromkeys(map(str, values)))
            columns[name] = np.array(
                [[float(str(value) == option) for option in options] for value in values]
            )
            points[name] = np.eye(len(options))
    return columns, points


def _effects(curves: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """The variance of each parameter's effect, by the mean over trees of their marginals."""
    return [float(np.mean(of_one, axis=0).var()) for of_one in zip(*curves, strict=True)]


def _range(values: np.ndarray, *, whole: bool, most: int) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if whole and high - low < most:
        return np.arange(low, high + 1)[:, None]
    edges = np.linspace(low, high, most + 1)
    return ((edges[1:] + edges[:-1]) / 2)[:, None]


def _marginals(tree: Any, points: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The tree's prediction at the points of each parameter, averaged over those of all the others."""
    low, high, value = _leaves(tree)
    inside, begin = [], 0
    for own in points:
        part = slice(begin, begin + own.shape[1])
        begin = part.stop
        above, below = low[:, None, part] < own[None], own[None] <= high[:, None, part]
        inside.append((above & below).all(axis=2).astype(np.float64))  # (leaves, P)
    shares = np.stack(
        [member.mean(axis=1) for member in inside]
    )  # of each parameter's points that a leaf holds
    return [
        member.T @ (value * np.delete(shares, index, axis=0).prod(axis=0))
        for index, member in enumerate(inside)
    ]


def _leaves(tree: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bounds (leaves, columns) of every leaf, open below and closed above, and its prediction."""
    found: list[tuple[np.ndarray, np.ndarray, float]] = []
    waiting = [(0, np.full(tree.n_features, -np.inf), np.full(tree.n_features, np.inf))]
    while waiting:
        node, low, high = waiting.pop()
        if tree.children_left[node] < 0:
            found.append((low, high, float(tree.value[node].item())))
            continue
        column, threshold = tree.feature[node], tree.threshold[node]
        left, right = high.copy(), low.copy()
        left[column], right[column] = min(high[column], threshold), max(low[column], threshold)
        waiting += [(tree.children_left[node], low, left), (tree.children_right[node], right, high)]
    lows, highs, values = zip(*found, strict=True)
    return np.stack(lows), np.stack(highs), np.array(values)
