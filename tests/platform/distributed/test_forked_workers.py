"""Workers of the session's cluster: forked from a process that has imported what they import, and workers like any other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
import ray

from raynodes import wait_until


class Worker:
    def standing(self) -> int:
        return os.getpid()


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
@pytest.mark.parametrize("killed", ["worker", "starter"])
def test_a_forked_worker_and_the_process_that_ray_made_for_it_end_together(
    killed: str, ray_home: Path
) -> None:
    actor = ray.remote(Worker).options(num_cpus=0).remote()
    worker = psutil.Process(ray.get(actor.standing.remote()))
    starter = psutil.Process(os.getpgid(worker.pid))  # Ray gives each a group of its own
    assert "worker_template.py" in " ".join(worker.parent().cmdline())
    assert "default_worker.py" in " ".join(starter.cmdline())
    {"worker": worker, "starter": starter}[killed].kill()
    wait_until(lambda: not worker.is_running() and not starter.is_running(), 60, "both have ended")
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.standing.remote())
