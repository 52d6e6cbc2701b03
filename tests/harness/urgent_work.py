"""Urgent work on the session's cluster, beside what a test runs in its own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray

from mergevq_platform.distributed.urgency import Urgency

START_SECONDS = 120.0


@dataclass
class UrgentWork:
    """What became of it."""

    said: list[str] = field(default_factory=list)
    held: bool = False  # it got its CPUs
    error: BaseException | None = None


@contextmanager
def urgent_work(
    when: Callable[[], bool],
    until: Callable[[], bool],
    *,
    cpus: float,
    begin: Callable[[], bool] = lambda: True,
) -> Iterator[UrgentWork]:
    """Once `when()`, a job that asks for so many CPUs beside those that are free by then, has them once `begin()`, and lets go
    once `until()`."""
    work, over = UrgentWork(), threading.Event()

    def wait(condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while not (true := condition()) and not over.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        return true

    def run() -> None:
        try:
            if not wait(when):
                return
            needs = cpus + ray.available_resources().get("CPU", 0.0)
            with Urgency("urgent", {"CPU": needs}, say=work.said.append) as urgency:
                wait(begin)
                group = ray.util.placement_group([{"CPU": cpus}])
                work.held = urgency.begun = bool(group.wait(START_SECONDS))
                wait(until)
                ray.util.remove_placement_group(group)
        except BaseException as error:
            work.error = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield work
    finally:
        over.set()
        thread.join(START_SECONDS)
