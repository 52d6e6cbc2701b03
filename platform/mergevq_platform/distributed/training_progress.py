"""Progress on the terminal: of a training run, and of jobs that are counted."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mergevq_platform.distributed.progress import PLAIN_SECONDS, duration
from mergevq_platform.recipe import Recipe

SHOWN = (
    ("total", "loss"),
    ("reconstruction", "reconstruction"),
    ("alignment", "alignment"),
    ("recovery_accuracy", "recovery"),
    ("codebook_entropy", "code entropy"),
    ("accuracy", "accuracy"),
)


class TrainingProgress:
    """A live line on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, recipe: Recipe, run: str) -> None:
        self.console = Console(file=sys.stderr)
        self.recipe, self.run = recipe, run
        self.live = Live(console=self.console, transient=True) if self.console.is_terminal else None
        self.shown_at, self.shown, self.warned = 0.0, "", 0

    def __enter__(self) -> TrainingProgress:
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
        text = line(status, stopping)
        if self.live:
            self.live.update(self._table(text))
        elif text != self.shown and (time.monotonic() - self.shown_at > PLAIN_SECONDS or _is_last(status)):
            self.console.print(text, highlight=False, soft_wrap=True)
            self.shown_at, self.shown = time.monotonic(), text

    def _table(self, text: str) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(text)
        return table


def line(status: dict[str, float], stopping: bool = False) -> str:
    """One line: step, rate, time left, share of time spent waiting for data, the losses that matter; or images being measured."""
    if "measured" in status:
        return f"measuring images, once: {status['measured']:.0f}/{status['images']:.0f}"
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


def _is_last(status: dict[str, float]) -> bool:
    done, every = ("measured", "images") if "measured" in status else ("step", "total_steps")
    return status[done] == status[every]
