"""Importance of parameters: the share of an objective's variance that each explains alone.

Main effects of a functional ANOVA over a random forest (Hutter et al. 2014), taken of the forest's mean prediction. Every range is
even here: hand over the logarithm of what was drawn evenly in its logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TREES = 64
POINTS = 200  # at which the effect of a range is read


def main_effects(parameters: Mapping[str, Sequence[object]], objective: Sequence[float]) -> dict[str, float]:
    """Parameter -> its share of the sum of main effects, the largest first; `parameters` holds a value for every trial.

    Numbers are ranges from their least to their largest, anything else is a choice of equal options. Parameters with one value
    are left out; empty where nothing varies.
    """
    from sklearn.ensemble import RandomForestRegressor

    columns: list[np.ndarray] = []
    points: dict[str, np.ndarray] = {}  # (P, columns of the parameter)
    for name, values in parameters.items():
        if len({str(value) for value in values}) < 2:
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            own = np.asarray(values, dtype=np.float64)[:, None]
            points[name] = _range(own, whole=all(isinstance(value, int) for value in values))
        else:
            options = list(dict.fromkeys(map(str, values)))
            own = np.array([[float(str(value) == option) for option in options] for value in values])
            points[name] = np.eye(len(options))
        columns.append(own)
    target = np.asarray(objective, dtype=np.float64)
    if not columns or np.ptp(target) == 0:
        return {}
    # Of one column, drawn anew for every split: otherwise the strongest parameter takes all of them, and the share of the others.
    forest = RandomForestRegressor(TREES, max_features=1, random_state=0).fit(np.hstack(columns), target)
    curves = [_marginals(tree.tree_, list(points.values())) for tree in forest.estimators_]
    effects = [float(np.mean(of_one, axis=0).var()) for of_one in zip(*curves, strict=True)]
    total = sum(effects)
    shares = {name: effect / total for name, effect in zip(points, effects, strict=True)} if total else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _range(values: np.ndarray, *, whole: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if whole and high - low < POINTS:
        return np.arange(low, high + 1)[:, None]
    edges = np.linspace(low, high, POINTS + 1)
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
