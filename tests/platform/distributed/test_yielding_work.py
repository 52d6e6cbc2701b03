"""Work that yields to urgent jobs, on one machine's CPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mergevq_platform.distributed.yielding import NICENESS

GIVE_WAY = """
import os, threading
from pathlib import Path
from mergevq_platform.distributed.yielding import give_way_on_cpus
niceness = lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
before = niceness()
def work():
    give_way_on_cpus()
    print(niceness() - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(niceness() - before, 19 - before)
group = Path("/proc/self/autogroup")
print(group.read_text().split()[-1] if group.exists() else "none")
"""


@pytest.mark.parametrize("session_of_its_own", [True, False])
def test_work_that_yields_computes_behind_what_else_wants_the_cpus(session_of_its_own: bool) -> None:
    group = Path("/proc/self/autogroup")
    before = group.read_text().split()[-1] if group.exists() else "none"
    answer = subprocess.run(
        [sys.executable, "-c", GIVE_WAY],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=session_of_its_own,
    )
    own, main, most, of_group = answer.stdout.split()
    assert int(own) == min(NICENESS, int(most))
    assert main == "0"
    assert of_group == (before if before == "none" or not session_of_its_own else str(NICENESS))
