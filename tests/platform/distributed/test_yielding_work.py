"""Work that yields to urgent jobs, on one machine's CPUs."""

from __future__ import annotations

import subprocess
import sys

from mergevq_platform.distributed.yielding import NICENESS

GIVE_WAY = """
import os, threading
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
"""


def test_work_that_yields_computes_behind_what_else_wants_the_cpus() -> None:
    answer = subprocess.run([sys.executable, "-c", GIVE_WAY], capture_output=True, text=True, check=True)
    own, main, most = answer.stdout.split()
    assert int(own) == min(NICENESS, int(most))
    assert main == "0"
