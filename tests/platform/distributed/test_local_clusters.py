"""A home's cluster on this machine: another command of the home joins it, and its own stays for urgent jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray

from mergevq.errors import InputError
from mergevq_platform.distributed import cluster, local_clusters
from mergevq_platform.distributed.urgency import Urgency
from raynodes import wait_until

JOIN = """
import sys
from pathlib import Path
import ray
from mergevq_platform.distributed import cluster
cluster.connect(Path(sys.argv[1]), address="auto")
print(ray.get_runtime_context().gcs_address)
"""


@pytest.mark.ray
def test_auto_is_the_cluster_of_this_home_and_needs_no_token_in_the_environment(
    ray_home: Path, tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    assert local_clusters.running(ray_home) == [address]
    assert local_clusters.running(tmp_path) == []
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    words = [sys.executable, "-c", JOIN, str(ray_home)]
    joined = subprocess.run(words, env=bare, capture_output=True, text=True, timeout=120)
    assert joined.stdout.split() == [address], joined.stderr
    assert "oken" not in joined.stderr


def test_of_several_clusters_one_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_clusters, "running", lambda home: ["a:1", "b:2"])
    with pytest.raises(
        InputError, match=r"several clusters of .* run here: name one by --address a:1 or b:2"
    ):
        cluster.connect(tmp_path, address="auto")


@pytest.mark.ray
def test_the_command_that_started_a_cluster_stays_for_an_urgent_job_of_another(
    ray_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staying = threading.Thread(target=cluster.stay_for_urgent, daemon=True)
    with Urgency("quick", {"CPU": 1.0}):
        staying.start()
        wait_until(lambda: "stays for quick" in capsys.readouterr().err, 60, "a line")
        assert staying.is_alive()
    staying.join(60)
    assert not staying.is_alive()
