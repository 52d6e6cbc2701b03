"""Data sets of the Hub on a cluster: every node has them in its own cache before workers begin."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hub_server
from raynodes import Nodes

ADDRESS = "127.0.0.1"
SCRIPT = """
import logging, ray
ray.init(address={address!r}, log_to_driver=False, logging_level=logging.ERROR)
from mergevq_platform.distributed.hub_cache import fetch_on_nodes
fetch_on_nodes([{place!r}], one_path={one_path})
"""


@pytest.mark.cluster
def test_every_node_fetches_into_its_own_cache_and_a_node_that_cannot_is_named(
    image_set: Path, tmp_path: Path
) -> None:
    with (
        hub_server.serving() as hub,
        Nodes(settings=hub_server.environment(hub.url, tmp_path / "head")) as nodes,
    ):
        commit = hub.upload(image_set, "me/shapes", "dataset")
        place = f"hf://datasets/me/shapes@{commit}"
        nodes.start()
        nodes.add(*((ADDRESS, ("env", f"HF_HOME={tmp_path / name}")) for name in ("one", "two")))

        def fetch(place: str, *, one_path: bool = False) -> subprocess.CompletedProcess[str]:
            script = SCRIPT.format(address=nodes.address, place=place, one_path=one_path)
            return subprocess.run(
                [sys.executable, "-c", script],
                env=nodes.environment,
                capture_output=True,
                text=True,
                timeout=300,
            )

        done = fetch(place)
        assert done.returncode == 0, done.stderr
        for name in ("head", "one", "two"):
            folder = tmp_path / name / "hub" / "datasets--me--shapes" / "snapshots" / commit
            assert sorted(path.name for path in folder.glob("*.parquet")) == sorted(
                path.name for path in image_set.glob("*.parquet")
            ), name
        refused = fetch(place, one_path=True).stderr.splitlines()[-1]
        assert f"{place} is in other places on other nodes" in refused
        assert "set HF_HOME to the same path everywhere, or add --serial" in refused
        unknown = fetch(f"hf://datasets/me/none@{commit}").stderr.splitlines()[-1]
        assert re.search(
            rf"InputError: node \S+: hf://datasets/me/none@{commit}: there is no such repo", unknown
        )
