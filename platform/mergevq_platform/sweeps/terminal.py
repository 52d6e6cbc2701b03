"""The terminal display of a running sweep: its trials, and the time left."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from mergevq.files import write_whole
from mergevq_platform.distributed.progress import duration
from mergevq_platform.distributed.yielding import job_of
from mergevq_platform.sweeps.definition import Sweep, described
from mergevq_platform.sweeps.finished import STOPPED
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.trial import params_and_number
from mergevq_platform.sweeps.yielding import YIELDED

MOST_ROWS = 40  # it is drawn anew at every event: with all of thousands of trials that would be quadratic
ENDED = ("finished", "stopped early", "failed")

_boards: dict[str, Board] = {}  # by sweep; Tune pickles its callbacks, a terminal cannot be pickled


@dataclass
class TrialRow:
    """A trial by its last report."""

    state: str = "waiting"
    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    choice: str = ""


class Board:
    """The table of trials: live on a terminal, a plain line per event elsewhere."""

    def __init__(self, sweep: Sweep, name: str, expected: int) -> None:
        self.sweep, self.name, self.expected = sweep, name, expected
        self.console = Console(file=sys.stderr)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.rows: dict[str, TrialRow] = {}
        self.began = time.monotonic()

    def __enter__(self) -> Board:
        _boards[self.name] = self
        self.console.print(f"sweep [bold]{self.name}[/]: {self.expected} trials of {self.sweep.recipe}")
        self.console.print(f"  {self.sweep.question}", highlight=False)
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _boards.pop(self.name, None)
        if self.live:
            self.live.stop()

    def update(self, trial: str, state: str, result: dict[str, Any] | None, choice: str) -> None:
        """A trial started, reported or ended."""
        row = self.rows.setdefault(trial, TrialRow())
        row.state, row.choice = state, choice or row.choice
        if result and "step" in result:
            row.step = int(result["step"])
            values = {o.name: float(result.get(o.name, math.nan)) for o in self.sweep.objectives}
            row.values = {name: value for name, value in values.items() if not math.isnan(value)}
        if self.live:
            self.live.update(Group(self.table(), self.time_left()), refresh=True)
        else:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in row.values.items())
            self.console.print(
                f"{trial}  {row.state}  step {row.step}  {shown}  ({row.choice})",
                highlight=False,
                soft_wrap=True,
            )

    def table(self) -> Table:
        """The trials that have started; of very many those that run and the last that ended."""
        table = Table()
        for title in ("trial", "state", "step", *(o.name for o in self.sweep.objectives), "choice"):
            table.add_column(
                title,
                no_wrap=title != "choice",
                justify="left" if title in ("trial", "state", "choice") else "right",
            )
        hidden = len(self.rows) - MOST_ROWS
        for trial in self._shown():
            row = self.rows[trial]
            values = [
                f"{row.values[o.name]:.4g}" if o.name in row.values else "" for o in self.sweep.objectives
            ]
            table.add_row(trial.removeprefix(f"{self.name}-"), row.state, str(row.step), *values, row.choice)
        if hidden > 0:
            table.caption = f"and {hidden} trials more"
        return table

    def _shown(self) -> list[str]:
        """The trials that the table has room for: those that run, then the last ones that ended."""
        if len(self.rows) <= MOST_ROWS:
            return sorted(self.rows)
        ended = [trial for trial, row in self.rows.items() if row.state in ENDED]
        under_way = [trial for trial, row in self.rows.items() if row.state not in ENDED][:MOST_ROWS]
        room = MOST_ROWS - len(under_way)
        return sorted([*under_way, *(ended[-room:] if room else [])])

    def time_left(self) -> str:
        """The time left, estimated from the trials that have ended."""
        done = sum(row.state in ENDED for row in self.rows.values())
        if not done:
            return f"0 of {self.expected} trials ended"
        left = (time.monotonic() - self.began) / done * (self.expected - done)
        return f"{done} of {self.expected} trials ended, about {duration(left)} left"


class Watch(tune.Callback):
    """Tune's callback: passes events on to the board of this process, and notes on disk which trials were stopped."""

    def __init__(self, settings: SweepSettings) -> None:
        self.settings = settings

    def __setstate__(self, state: dict[str, SweepSettings]) -> None:
        # A sweep that an earlier version stored calls them `place`.
        self.settings = state.get("settings") or state["place"]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """A trial begins, or goes on."""
        self._update(trial, "running", trial.last_result)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: object
    ) -> None:
        """A trial measured its objectives, or has yielded."""
        lease = result.get(YIELDED)
        self._update(trial, f"yielded to {job_of(lease)}" if lease else "running", result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """A trial ended by itself or was stopped by the scheduler."""
        result = trial.last_result or {}
        finished = bool(result.get("finished"))
        if not finished:
            directory = self.settings.run(str(trial)).directory
            directory.mkdir(parents=True, exist_ok=True)
            write_whole(directory / STOPPED, json.dumps({"step": int(result.get("step", 0))}))
        self._update(trial, "finished" if finished else "stopped early", trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """A trial failed; it starts again while it may."""
        self._update(trial, "failed", trial.last_result)

    def _update(self, trial: Trial, state: str, result: dict[str, Any] | None) -> None:
        if board := _boards.get(self.settings.name):
            board.update(str(trial), state, result, described(params_and_number(trial.config)[0]))
