"""The curves that a figure draws as lines, where there are more than a reader can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergevq_platform.figures.compared import Entry, Point, averaged, by_label
from mergevq_platform.figures.pareto import LossAndGain, front, hypervolume

MOST_LINES = 60


def drawn(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries of at most `MOST_LINES` labels, in their order, and a sentence where that leaves some out.

    Those with a point on the Pareto front come first, then each group's best in turn, by the hypervolume of their own curve.
    """
    points = averaged(entries)
    labels = {same[0].label: same for same in by_label(points)}
    if len(labels) <= MOST_LINES:
        return list(entries), []
    worst = worst_point(points)
    volumes = {label: hypervolume(list(map(goals, same)), worst) for label, same in labels.items()}
    of_front = [points[index].label for index in front(list(map(goals, points)))]
    ranked = sorted(labels, key=lambda label: -volumes[label])
    groups: dict[str, list[str]] = {}
    for label in ranked:
        groups.setdefault(labels[label][0].group, []).append(label)
    in_turn = sorted(
        (turn, -volumes[label], label) for same in groups.values() for turn, label in enumerate(same)
    )
    chosen = set(list(dict.fromkeys([*of_front, *(label for *_, label in in_turn)]))[:MOST_LINES])
    said = (
        f"{MOST_LINES} of {len(labels):,} curves are drawn: those on the Pareto front, then the best of every family in turn, by "
        "the area that each dominates; curves.csv has all of them"
    )
    return [entry for entry in entries if entry.label in chosen], [said]


def goals(point: Point) -> LossAndGain:
    """(ln Fréchet distance, gain), in which areas are measured."""
    return math.log(max(point.loss, 1e-12)), point.gain


def worst_point(points: Sequence[Point]) -> LossAndGain:
    """The largest ln distance and the least gain among the points: a reference that all of them reach."""
    both = [one for one in map(goals, points) if math.isfinite(one[0]) and math.isfinite(one[1])] or [
        (0.0, 0.0)
    ]
    return max(loss for loss, _ in both), min(gain for _, gain in both)
