"""Heartbeats: a worker that hangs is noticed and named long before a collective times out.

A thread of every worker process sends the run's actor where the worker is. A process that is stopped, or cut off, falls
silent; one that waits for ever goes on beating, but in the same phase of the same step.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

BEATS_PER_TIMEOUT = 8
SLOWEST_BEAT_SECONDS = 10.0
# What may take many times as long as a forward pass: the first one with a kept count compiles every layer.
PATIENCE = {"starting": 3.0, "compiling": 10.0, "validating": 3.0, "saving": 3.0}
END_SECONDS = 60.0


@dataclass(frozen=True)
class Heartbeat:
    """A worker's heartbeat: rank, process, step, phase, and the seconds in this phase."""

    rank: int
    world_size: int
    node_id: str
    address: str
    pid: int
    created: float  # the process's, for a pid that is used again
    step: int
    phase: str
    seconds_in_phase: float


class HeartbeatSender:
    """The beating thread of one worker; a context manager. `at` tells it where the worker is, at no cost."""

    def __init__(
        self,
        send: Callable[[Heartbeat], Any],
        *,
        rank: int,
        world_size: int,
        node_id: str,
        address: str,
        timeout_seconds: float,
    ) -> None:
        self._send, self._who = send, (rank, world_size, node_id, address, os.getpid())
        self._created = psutil.Process().create_time()
        self._place = (0, "starting", time.monotonic())
        self._interval = min(SLOWEST_BEAT_SECONDS, timeout_seconds / BEATS_PER_TIMEOUT)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mergevq-heartbeat", daemon=True)

    def at(self, step: int, phase: str) -> None:
        """The worker begins a phase of a step."""
        self._place = (step, phase, time.monotonic())

    def beat(self) -> Heartbeat:
        """The worker's current heartbeat."""
        step, phase, since = self._place
        return Heartbeat(*self._who, self._created, step, phase, time.monotonic() - since)

    def __enter__(self) -> HeartbeatSender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._send(self.beat())
            if self._ended.wait(self._interval):
                return


class HangMonitor:
    """The last heartbeat of every worker, by the clock of the process where they arrive."""

    def __init__(self, timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_seconds = timeout_seconds
        self._clock = clock
        self._received: dict[int, tuple[float, Heartbeat]] = {}
        self._last: float | None = None

    def record(self, beat: Heartbeat) -> None:
        """Keep a heartbeat. Ranks that its group does not have belonged to an earlier, larger one."""
        self._last = self._clock()
        self._received[beat.rank] = (self._last, beat)
        for rank in [rank for rank in self._received if rank >= beat.world_size]:
            del self._received[rank]

    def forget(self, rank: int) -> None:
        """Drop a worker that is no longer there."""
        self._received.pop(rank, None)

    @property
    def begun(self) -> bool:
        """Whether any worker has sent a heartbeat."""
        return self._last is not None

    def quiet_seconds(self) -> float:
        """Seconds without any heartbeat; 0 before the first."""
        return self._clock() - self._last if self._last is not None else 0.0

    def hung(self) -> tuple[Heartbeat, str] | None:
        """The worker that holds the others up, and a line that says so; None while all is well.

        A silent one comes first. Where all beat, but each has been in its phase for longer than it may, it is the one that is
        furthest behind; of those at the same step, one that does not just wait for the others.
        """
        now = self._clock()
        silent = [(now - at, beat) for at, beat in self._received.values() if now - at > self.timeout_seconds]
        if silent:
            seconds, beat = max(silent, key=lambda pair: pair[0])
            return beat, self._line(beat, f"has been silent for {seconds:.0f} s")
        beats = [beat for _, beat in self._received.values()]
        if not beats or any(beat.seconds_in_phase <= self._allowed(beat) for beat in beats):
            return None
        waits = ("training", "compiling")
        beat = min(beats, key=lambda beat: (beat.step, beat.phase in waits, -beat.seconds_in_phase))
        return beat, self._line(beat, f"has not moved for {beat.seconds_in_phase:.0f} s")

    def _allowed(self, beat: Heartbeat) -> float:
        return self.timeout_seconds * PATIENCE.get(beat.phase, 1.0)

    def _line(self, beat: Heartbeat, what: str) -> str:
        return f"worker {beat.rank} on {beat.address} (process {beat.pid}) {what}, at step {beat.step} ({beat.phase})"


def end(beat: Heartbeat) -> bool:
    """Kill the worker's process on its node, so that Ray Train restarts the group; False where it is gone already."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=beat.node_id, soft=False)
    killing = ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        return bool(ray.get(killing.remote(beat.pid, beat.created), timeout=END_SECONDS))
    except ray.exceptions.RayError:  # the node is gone, or cannot be reached: Ray notices that itself
        return False


def _kill(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        if process.create_time() != created:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
