"""The tables and figure of `front_stopping.py`: hypervolume that is left over steps that are spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from front_stopping_replay import OBJECTIVES, SCHEDULERS, ReplayedSweep, read_records, replay

WORKERS = (2, 4, 8)
VOLUME, STEPS = (
    0.98,
    0.60,
)  # the aim: at least this share of the hypervolume for at most this share of the steps
COLOURS = ("#d55e00", "#e69f00", "#f0c571", "#8c564b", "#0072b2", "#56b4e9", "#009e73", "#b2df8a", "#aa4499")
MARKERS = "os^"


@dataclass(frozen=True)
class SchedulerRow:
    """A scheduler on one sweep: shares of the full sweep's hypervolume and steps over orders of arrival and workers."""

    objectives: str
    scheduler: str
    sweep: str
    volume: float
    low: float  # 5th and 95th percentile of the volume
    high: float
    steps: float

    @property
    def reaches(self) -> bool:
        """Whether it reaches the aim, in the mean."""
        return self.volume >= VOLUME and self.steps <= STEPS


def replayed(file: Path, orders: int) -> list[SchedulerRow]:
    """Every scheduler on every sweep of a file of records, for each pair of objectives."""
    found = []
    for objectives in OBJECTIVES:
        for sweep in read_records(file, objectives):
            found += [_row(objectives, name, sweep, orders) for name in SCHEDULERS]
    return found


def _row(objectives: str, scheduler: str, sweep: ReplayedSweep, orders: int) -> SchedulerRow:
    made = [
        replay(sweep, SCHEDULERS[scheduler](sweep, order), workers=workers, order=order)
        for workers in WORKERS
        for order in range(orders)
    ]
    volumes = np.array([one.volume_share for one in made])
    low, high = np.percentile(volumes, (5, 95))
    steps = float(np.mean([one.steps_share for one in made]))
    return SchedulerRow(
        objectives, scheduler, sweep.name, float(volumes.mean()), float(low), float(high), steps
    )


def markdown(rows: Sequence[SchedulerRow], orders: int) -> str:
    """A table for each pair of objectives, a sweep a column, and whether the default reaches the aim."""
    sweeps = list(dict.fromkeys(row.sweep for row in rows))
    parts = []
    for objectives in dict.fromkeys(row.objectives for row in rows):
        own = [row for row in rows if row.objectives == objectives]
        lines = ["| " + " | ".join([objectives, *(sweep.replace("_", " ") for sweep in sweeps)]) + " |"]
        lines.append("|---" * (1 + len(sweeps)) + "|")
        for scheduler in dict.fromkeys(row.scheduler for row in own):
            cells = [_cell(row) for row in own if row.scheduler == scheduler]
            lines.append(f"| {scheduler} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    default = [row for row in rows if row.scheduler == next(iter(SCHEDULERS))]
    reached = sum(row.reaches for row in default)
    parts.append(
        f"The default keeps at least {VOLUME:.0%} of the hypervolume for at most {STEPS:.0%} of the steps in {reached} of "
        f"{len(default)} cases. Mean over {orders} orders of arrival by each of {', '.join(map(str, WORKERS))} workers; in brackets "
        "their 5th and 95th percentile; after @ the share of steps. Reference point: the worst final value of each objective in the sweep."
    )
    return "\n\n".join(parts) + "\n"


def _cell(row: SchedulerRow) -> str:
    text = f"{100 * row.volume:.1f} [{100 * row.low:.0f}, {100 * row.high:.0f}] @ {100 * row.steps:.0f}"
    return f"**{text}**" if row.reaches else text


def draw(rows: Sequence[SchedulerRow], path: Path) -> None:
    """Hypervolume over steps, a panel for each pair of objectives, a colour a scheduler, a marker a sweep."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(12.4, 5.0), dpi=100, facecolor="white", layout="constrained")
    names = list(dict.fromkeys(row.objectives for row in rows))
    schedulers = [*dict.fromkeys(row.scheduler for row in rows)]
    sweeps = [*dict.fromkeys(row.sweep for row in rows)]
    colours = dict(zip(schedulers, (*COLOURS, "#888888"), strict=True))
    for axes, objectives in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        axes.add_patch(
            Rectangle((0, 100 * VOLUME), 100 * STEPS, 100 - 100 * VOLUME + 2, color="#e8f3e8", zorder=0)
        )
        for row in (row for row in rows if row.objectives == objectives):
            marker = MARKERS[sweeps.index(row.sweep)]
            default = row.scheduler == schedulers[0]
            axes.plot(
                100 * row.steps,
                100 * row.volume,
                marker,
                color=colours[row.scheduler],
                markersize=9 if default else 6,
                markeredgecolor="black" if default else "none",
            )
        axes.set_title(objectives, fontsize=11, loc="left")
        axes.set_xlabel("optimizer steps, % of the full sweep")
        axes.set_xlim(25, 72)
        axes.set_ylim(45, 102)
        axes.grid(color="#e6e6e6", linewidth=0.8)
    figure.axes[0].set_ylabel("hypervolume, % of the full sweep")
    shown = [
        Line2D([], [], marker="o", linestyle="", color=colours[name], label=name.replace("*", ""))
        for name in schedulers
    ]
    shown += [
        Line2D([], [], marker=MARKERS[at], linestyle="", color="black", label=name.replace("_", " "))
        for at, name in enumerate(sweeps)
    ]
    figure.legend(handles=shown, loc="outside lower center", ncols=5, fontsize=8.5, frameon=False)
    figure.savefig(path)
