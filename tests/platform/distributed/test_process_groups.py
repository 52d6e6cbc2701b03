"""A signal to the whole process group of a training, as `timeout` and shells send it, is the driver's alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergevq_platform.storage import checkpoints
from mergevq_platform.tracking.listing import find_run
from mergevq_platform.tracking.store import Store

SCRIPT = """
import os, signal, subprocess, sys, time
from mergevq_platform.distributed.cluster import children_in_a_group_of_their_own
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
group = os.getpgrp()
with children_in_a_group_of_their_own():
    child = subprocess.Popen(["sleep", "100"])
assert os.getpgrp() == group
leads = group == os.getpid()
assert (os.getpgid(child.pid) == group) == leads
os.killpg(group, signal.SIGTERM)
time.sleep(0.5)
print(leads, heard == [signal.SIGTERM], child.poll() is None)
child.kill()
"""


@pytest.mark.parametrize("leads", [False, True])
def test_children_are_spared_what_their_parents_group_is_sent(leads: bool) -> None:
    shell = f"trap '' TERM; {sys.executable} -c '{SCRIPT}'; exit $?"
    words = [sys.executable, "-c", SCRIPT] if leads else ["bash", "-c", shell]
    answer = subprocess.run(words, start_new_session=True, capture_output=True, text=True, timeout=120)
    assert answer.stdout.split() == [str(leads), "True", str(not leads)], answer.stderr


@pytest.mark.ray
@pytest.mark.long
def test_a_run_that_timeout_ends_writes_a_checkpoint_and_is_recorded_as_killed(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe | {"steps": 100_000, "checkpoint_every": 100_000}))
    process = subprocess.Popen(
        # As `timeout` runs it: in a group that another process leads.
        ["bash", "-c", f"{sys.executable} -m mergevq_platform.cli train {recipe} --name ended; exit $?"],
        env=os.environ | {"MERGEVQ_HOME": str(tmp_path)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    journal, deadline = tmp_path / "ray" / "ended" / "journal.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if journal.is_file() and '"step":2,' in journal.read_text():
            break
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=200)  # the pipe closes when the training ends, not with its shell
    assert "go on with: mergevq train --resume ended" in output
    assert checkpoints.step_of(checkpoints.listed(str(tmp_path / "ray" / "ended"))[0]) > 1
    assert find_run(Store.at(tmp_path), "ended").status == "KILLED"
