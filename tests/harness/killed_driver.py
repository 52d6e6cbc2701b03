"""A sweep's driver in a process of its own that is killed in the middle, and the cluster after it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from family import descendants
from raynodes import POLL_SECONDS, wait_until

PATIENCE_SECONDS = 240.0
TRIALS = ("ImplicitFunc", "run_trial")  # in the command lines of trials' processes


def killed(
    script: str,
    *arguments: Path,
    environment: Mapping[str, str],
    when: Callable[[], bool],
    ends: tuple[str, ...] = TRIALS,
) -> None:
    """Run a Python script, and kill it as soon as `when()`, before it ends by itself.

    Returns once the cluster has ended the processes that have one of the words `ends` in their command lines.
    """
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not when():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not descendants(*ends), 60, f"the cluster ends {ends}")
