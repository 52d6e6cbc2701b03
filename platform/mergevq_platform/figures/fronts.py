"""Pareto fronts of several sweeps over each other, with the hypervolume of each up to one common reference point."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergevq.errors import InputError
from mergevq_platform.figures.compared import (
    Entry,
    Point,
    averaged,
    best_of,
    comparison_axes,
    require_one_identity,
)
from mergevq_platform.figures.drawn import goals, worst_point
from mergevq_platform.figures.frame import framed, legend, styles
from mergevq_platform.figures.front import distance_and_gain, name_points
from mergevq_platform.figures.pareto import LossAndGain, hypervolume

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SweepFront:
    """The front of one sweep (or run) of a comparison."""

    name: str
    curves: int
    points: list[Point]
    best: list[Point]  # that no other of its own points beats, by rising distance
    hypervolume: float  # of (ln Fréchet distance, gain), up to the common reference
    of_joint: int  # of its points, those that no point of any sweep beats


@dataclass(frozen=True)
class ComparedFronts:
    """Fronts of entries whose group is their sweep, and the reference point (ln Fréchet distance, gain) of all."""

    fronts: list[SweepFront]
    reference: LossAndGain
    frechet_key: str
    gain_key: str
    x_column: str

    def sentence(self) -> str:
        """The reference point of the hypervolumes."""
        loss, gain = self.reference
        return (
            f"Hypervolume: the area of (ln {self.frechet_key}, {self.gain_key}) that the points of a sweep dominate, up to the worst of "
            f"all points compared here: {self.frechet_key} {math.exp(loss):.4g}, {self.gain_key} {gain:.4g}"
        )

    def table(self) -> list[list[str]]:
        """Header and rows, the largest hypervolume first."""
        least, most = f"least {self.frechet_key}", f"most {self.gain_key}"
        rows = [
            ["sweep", "hypervolume", "curves", "points", "on its front", "on the joint front", least, most]
        ]
        for one in sorted(self.fronts, key=lambda one: -one.hypervolume):
            counts = (one.curves, len(one.points), len(one.best), one.of_joint)
            ends = [
                f"{value:.4g} ({self.x_column} {p.at:g})"
                for p, value in ((one.best[0], one.best[0].loss), (one.best[-1], one.best[-1].gain))
            ]
            rows.append([one.name, f"{one.hypervolume:.4g}", *map(str, counts), *ends])
        return rows

    def legend(self) -> dict[str, list[Point]]:
        """The points of each front, by a name that says its hypervolume."""
        return {f"{one.name}: hypervolume {one.hypervolume:.4g}": one.best for one in self.fronts}

    def csv(self) -> str:
        """The points of every front, full precision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["sweep", "label", self.x_column, self.frechet_key, self.gain_key])
        for one in self.fronts:
            writer.writerows([one.name, p.label, f"{p.at:g}", repr(p.loss), repr(p.gain)] for p in one.best)
        return text.getvalue()


def compared_fronts(entries: Sequence[Entry]) -> ComparedFronts:
    """The fronts of entries by their group.

    Raises `InputError` for curves that were not measured alike, and for a group without a finite point.
    """
    require_one_identity([entry.curve for entry in entries])
    points, axes = averaged(entries), comparison_axes(entries[0].curve)
    worst = worst_point(points)
    joint = set(map(id, best_of(points)))
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    best = {name: best_of(mine) for name, mine in groups.items()}
    for name, found in best.items():
        if not found:
            raise InputError(f"'{name}' has no point with a finite distance and gain: leave it out")
    fronts = [
        SweepFront(
            name=name,
            curves=len({p.label for p in mine}),
            points=mine,
            best=best[name],
            hypervolume=hypervolume(list(map(goals, mine)), worst),
            of_joint=sum(id(p) in joint for p in mine),
        )
        for name, mine in groups.items()
    ]
    return ComparedFronts(fronts, worst, entries[0].curve.frechet_key, axes.gain_key, axes.x_column)


def fronts_figure(entries: Sequence[Entry], compared: ComparedFronts, title: str) -> Figure:
    """All points faintly, and the front of each sweep in its colour, with its hypervolume in the legend."""
    figure, (axes,), handles = framed(entries, title, "", panels=1, more=[compared.sentence()])
    of_group = styles(entries)
    of_name = {handle.get_label(): handle for handle in handles}
    for one, name in zip(compared.fronts, compared.legend(), strict=True):
        colour, marker = of_group[one.name]
        axes.scatter(
            [p.loss for p in one.points],
            [p.gain for p in one.points],
            c=colour,
            marker=marker,
            s=22,
            alpha=0.25,
        )
        losses, gains = [p.loss for p in one.best], [p.gain for p in one.best]
        axes.step(losses, gains, where="post", color=colour, linewidth=1.8)
        axes.scatter(losses, gains, c=colour, marker=marker, s=44)
        if one.name in of_name:
            of_name[one.name].set_label(name)
    distance_and_gain(axes, entries[0].curve, [p for one in compared.fronts for p in one.points])
    for one in compared.fronts:
        name_points(axes, one.best, color=of_group[one.name][0])
    legend(figure, handles)
    return figure
