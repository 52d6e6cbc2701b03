"""A sweep that is told to end: SIGTERM, as a stopped job gets, means what Ctrl-C means."""

from __future__ import annotations

import os
import signal

from mergevq_platform.sweeps.driver import _terminated_as_interrupted


def test_sigterm_interrupts_a_sweep_and_only_a_sweep() -> None:
    seen: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with _terminated_as_interrupted():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGINT]
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
