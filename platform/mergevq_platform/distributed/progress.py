"""Progress on the terminal: of a training run, and of jobs that are counted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mergevq_platform.recipe import Recipe

SHOWN = (
    ("total", "loss"),
    ("reconstruction", "reconstruction"),
    ("alignment", "alignment"),
    ("recovery_accuracy", "recovery"),
    ("codebook_entropy", "code entropy"),
    ("accuracy", "accuracy"),
)
PLAIN_SECONDS = 10.0


class Progress:
    """A live line on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, recipe: Recipe, run: str) -> None:
        self.console = Console(file=sys.stderr)
        self.recipe, self.run = recipe, run
        self.live = Live(console=self.console, transient=True) if self.console.is_terminal else None
        self.shown_at, self.shown_step, self.warned = 0.0, -1.0, 0

    def __enter__(self) -> Progress:
        self.console.print(
            f"training [bold]{self.run}[/]: {self.recipe.cluster.workers} worker(s), batch {self.recipe.global_batch}"
        )
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, status: dict[str, float], warnings: list[str], *, stopping: bool) -> None:
        """Show the latest progress and any new warning."""
        for warning in warnings[self.warned :]:
            self.console.print("[yellow]warning:[/]", escape(warning), highlight=False, soft_wrap=True)
        self.warned = len(warnings)
        if not status:
            return
        if self.live:
            self.live.update(self._table(status, stopping))
        elif status["step"] != self.shown_step and (
            time.monotonic() - self.shown_at > PLAIN_SECONDS or status["step"] == status["total_steps"]
        ):
            self.console.print(line(status, stopping), highlight=False, soft_wrap=True)
            self.shown_at, self.shown_step = time.monotonic(), status["step"]

    def _table(self, status: dict[str, float], stopping: bool) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(line(status, stopping))
        return table


def line(status: dict[str, float], stopping: bool = False) -> str:
    """One line: step, rate, time left, share of time spent waiting for data, the losses that matter."""
    step, total = int(status["step"]), int(status["total_steps"])
    parts = [
        f"step {step}/{total}",
        f"{status['images_per_second']:.0f} images/s",
        f"{duration((total - step) * status['seconds_per_step'])} left",
        f"data wait {status['waiting_share']:.0%}",
    ]
    parts += [f"{label} {status[name]:.3g}" for name, label in SHOWN if name in status]
    if stopping:
        parts.append("stopping after a checkpoint (Ctrl-C again: at once)")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """3725 -> '1h02m', 65 -> '1m05s'."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s"


@contextmanager
def counted(title: str, unit: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Progress of a job of `total` units: call what it gives with every number newly done. Shows rate and time left."""
    console = Console(file=sys.stderr)
    live = Live(console=console, transient=True) if console.is_terminal and shown else None
    began, done, resumed, said = time.monotonic(), 0, 0, time.monotonic()

    def advance(number: int) -> None:
        nonlocal done, resumed, said
        done += number
        seconds = time.monotonic() - began
        if seconds < 0.05:  # what an earlier run had done says nothing about the rate
            resumed = done
        rate = (done - resumed) / max(seconds, 1e-9)
        text = f"{title} {done}/{total} {unit}"
        if rate:
            text += f"  {rate:.0f} {unit}/s  {duration((total - done) / rate)} left"
        if live:
            live.update(text)
        elif shown and (time.monotonic() - said > PLAIN_SECONDS or (done == total and said > began)):
            console.print(text, highlight=False, soft_wrap=True)
            said = time.monotonic()

    if live:
        live.start()
    try:
        yield advance
    finally:
        if live:
            live.stop()
