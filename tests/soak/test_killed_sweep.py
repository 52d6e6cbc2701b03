"""A sweep that stops on the front, its driver killed ten times at random moments: it ends as the undisturbed one. `make soak`."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mergevq_platform.sweeps import driver, loading
from mergevq_platform.sweeps.front_rungs import DECISIONS, read_decisions
from mergevq_platform.tracking.records import JOURNAL_NAME, read_metrics
from sweep_ends import end_of, question_file, require_delivered_once, trials_of

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.timeout(3600)]

NAME, STEPS, KILLS, SEED = "soak", 16, 10, 0
LONGEST_DELAY_SECONDS = 1.5  # from a record to the kill: what lies between records is struck too
PATIENCE_SECONDS = 300.0
QUESTION = """
from mergevq_platform.sweeps import *
SWEEP = Sweep(
    name="soak", question="?", recipe={recipe!r}, search=Grid(), stopping=FrontStopping(every_steps=2, min_trials=2),
    space={{"optimizer.learning_rate": choice(1e-4, 1e-9, 3e-4, 1e-8, 1e-3, 1e-10, 3e-3, 1e-7)}},
    objectives=(mean_psnr(), mean_log_frechet()), rung=Rung(keeps=(4,), images=32, probe_images=32),
)
"""
# As `mergevq sweep FILE --name soak`, or `mergevq sweep --resume soak` where there is something to resume.
DRIVER = """
import sys
from pathlib import Path
from mergevq_platform.sweeps import driver, loading, stored
home = Path(sys.argv[1])
if stored.is_sweep("soak", home):
    driver.sweep(None, home=home, resume="soak", concurrent=1)
else:
    driver.sweep(loading.load(sys.argv[2]), home=home, name="soak", concurrent=1)
"""


def progress(home: Path) -> int:
    """The optimizer steps, decisions and finished trials that a sweep has on disk; none counts twice."""
    steps = 0
    for path in (home / "ray").glob(f"{NAME}-*/{JOURNAL_NAME}"):
        steps += len(read_metrics(path, "train/total").get("train/total", {}))
    decisions = read_decisions(home / "ray" / NAME / DECISIONS)
    return steps + len(decisions) + len(list((home / "ray").glob(f"{NAME}-*/finished.json")))


def test_a_sweep_whose_driver_is_killed_ten_times_ends_as_if_it_had_not_been(
    small_recipe: dict[str, Any], tmp_path: Path, joining: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = question_file(small_recipe, tmp_path, QUESTION, steps=STEPS)
    whole, home = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    expected = end_of(driver.sweep(loading.load(str(file)), home=whole, name=NAME, concurrent=1), whole)
    assert expected.stopped
    assert len(expected.records) > 1
    alone, total = time.monotonic() - began, progress(whole)

    dice, moments = random.Random(SEED), []
    began = time.monotonic()
    for kill in range(KILLS):
        done = progress(home)
        due = done + 1 + int(dice.random() * (total - done) / (KILLS - kill))
        delay = dice.uniform(0, LONGEST_DELAY_SECONDS)
        command = [sys.executable, "-c", DRIVER, str(home), str(file)]
        process = subprocess.Popen(command, env=joining, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while progress(home) < due:
                assert process.poll() is None, f"it ended before kill {kill + 1} (seed {SEED}): {moments}"
                assert time.monotonic() < deadline, f"no progress to {due} (seed {SEED}): {moments}"
                time.sleep(0.1)
            time.sleep(delay)
            assert process.poll() is None, f"it ended before kill {kill + 1} (seed {SEED}): {moments}"
        finally:
            process.kill()
            process.wait()
        moments.append(progress(home))  # the next driver begins at once, while the cluster still cleans up
    outcome = driver.sweep(None, home=home, resume=NAME, concurrent=1)
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(
            f"\nseed {SEED}: {KILLS} kills after {moments} of {total} steps, decisions and ends, {seconds:.0f} s ({alone:.0f} s "
            f"undisturbed); {len(expected.records)} trials finished, {len(expected.stopped)} were stopped"
        )
    assert end_of(outcome, home) == expected
    values = require_delivered_once(outcome, home)
    with capsys.disabled():
        print(f"{len(trials_of(outcome))} trials bit for bit, {values} values in MLflow once each")
