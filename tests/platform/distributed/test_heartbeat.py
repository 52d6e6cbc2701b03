"""Heartbeats: who is silent, who stands still, and who is only waited for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from queue import Empty
from typing import Any

import pytest

from mergevq_platform.distributed.heartbeat import HangMonitor, Heartbeat, HeartbeatSender, _kill

BEAT = Heartbeat(
    rank=0,
    world_size=2,
    node_id="n",
    address="10.0.0.1",
    pid=7,
    created=0.0,
    step=5,
    phase="training",
    seconds_in_phase=1.0,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_worker_that_falls_silent_is_named_with_place_and_step(clock: Clock) -> None:
    monitor = HangMonitor(60, clock)
    monitor.record(BEAT)
    monitor.record(replace(BEAT, rank=1, address="10.0.0.2", pid=8))
    clock.now = 59
    monitor.record(BEAT)
    assert monitor.hung() is None
    clock.now = 61
    beat, line = monitor.hung()  # type: ignore[misc]
    assert beat.rank == 1
    assert line == "worker 1 on 10.0.0.2 (process 8) has been silent for 61 s, at step 5 (training)"


def test_one_that_waits_for_data_is_blamed_and_not_those_who_wait_for_it(clock: Clock) -> None:
    monitor = HangMonitor(60, clock)
    monitor.record(replace(BEAT, seconds_in_phase=90))
    monitor.record(replace(BEAT, rank=1, phase="waiting for data", seconds_in_phase=80))
    beat, line = monitor.hung()  # type: ignore[misc]
    assert beat.rank == 1
    assert "has not moved for 80 s, at step 5 (waiting for data)" in line
    monitor.record(replace(BEAT, step=4, seconds_in_phase=70))
    assert monitor.hung()[0].step == 4  # type: ignore[index]


def test_nobody_hangs_while_anybody_moves_or_does_what_may_take_long(clock: Clock) -> None:
    monitor = HangMonitor(60, clock)
    monitor.record(replace(BEAT, seconds_in_phase=500))
    monitor.record(replace(BEAT, rank=1, seconds_in_phase=3))
    assert monitor.hung() is None
    monitor.record(replace(BEAT, rank=1, phase="saving", seconds_in_phase=170))
    assert monitor.hung() is None
    monitor.record(replace(BEAT, rank=1, phase="saving", seconds_in_phase=190))
    assert monitor.hung() is not None


def test_ranks_of_a_larger_group_before_are_forgotten(clock: Clock) -> None:
    monitor = HangMonitor(60, clock)
    monitor.record(replace(BEAT, rank=2, world_size=3))
    clock.now = 100
    monitor.record(replace(BEAT, world_size=2))
    assert monitor.hung() is None
    monitor.forget(0)
    clock.now = 130
    assert monitor.hung() is None
    assert monitor.quiet_seconds() == 30


def _beating(beats: Any) -> None:
    sender = HeartbeatSender(
        beats.put, rank=0, world_size=1, node_id="n", address="here", timeout_seconds=0.4
    )
    with sender:
        for step in range(10_000):
            sender.at(step, "training")
            time.sleep(0.01)


def test_a_stopped_process_falls_silent_and_is_ended_by_its_own_beat() -> None:
    context = multiprocessing.get_context("spawn")
    beats: Any = context.Queue()
    process = context.Process(target=_beating, args=(beats,), daemon=True)
    process.start()
    first, second = beats.get(timeout=120), beats.get(timeout=120)
    assert (first.pid, first.rank) == (process.pid, 0)
    assert second.step >= first.step
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(0.2)
    while True:  # what was sent before it stopped
        try:
            beats.get(timeout=0.2)
        except Empty:
            break
    with pytest.raises(Empty):
        beats.get(timeout=0.5)
    assert not _kill(first.pid, first.created - 1), "another process of the same pid is left alone"
    assert _kill(first.pid, first.created)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not _kill(first.pid, first.created)
