"""Progress of long work on the terminal: a live line there, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

PLAIN_SECONDS = 10.0


def duration(seconds: float) -> str:
    """3725 -> '1h02m', 65 -> '1m05s'."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s"


def readable_size(count: float) -> str:
    """Bytes for people: 1234567 -> '1.2 MB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


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
