"""Faults of urgent jobs and of what yields to them: nobody waits for what is gone, and a sweep ends as if undisturbed. `make faults`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import undisturbed
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps.finished import RECORD, Finished
from raynodes import (
    Driver,
    Nodes,
    family,
    journal_of,
    kill,
    same,
    state,
    step_of,
    wait_until,
    write_recipe,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

STEPS = 600
SWEEP = ("-m", "mergevq_platform.cli", "sweep")
# Holds both CPUs of the cluster for so many seconds.
URGENT = """
import sys, time
from pathlib import Path
import ray
from mergevq_platform.distributed import cluster
from mergevq_platform.distributed.urgency import Urgency
cluster.connect(Path.cwd())
with Urgency("urgent", {"CPU": 2.0}) as urgency:
    urgency.begun = ray.util.placement_group([{"CPU": 1.0}] * 2).wait(600)
    print("urgent: it has its CPUs", flush=True)
    time.sleep(float(sys.argv[1]))
"""


class DisturbedSweep:
    """A sweep of two trials, one on each node, that urgent jobs disturb."""

    def __init__(self, nodes: Nodes, home: Path, tree: dict[str, Any], name: str) -> None:
        tree["cluster"] = {"workers": 1, "device": "cpu"}
        tree |= {"steps": STEPS, "checkpoint_every": 200, "log_every": 10}
        tree["evaluation"] |= {"keeps": [4], "untrained_baseline": False}
        self.nodes, self.home, self.name = nodes, home, name
        self.drivers: list[Driver] = []
        recipe = write_recipe(tree, home)
        (home / "question.py").write_text(
            "from mergevq_platform.sweeps import *\n"
            f"SWEEP = Sweep(name='yields', question='?', recipe={recipe!r}, search=Grid(), "
            "space={'task.losses.entropy.weight': choice(0.01, 0.02)}, objectives=(mean_psnr(),))\n"
        )
        self.trials = [Run(f"{name}-{number:03d}", home, str(home / "ray")) for number in range(2)]
        self.sweep = self.start("question.py", "--name", name, words=SWEEP)
        wait_until(lambda: all(step_of(run) >= 20 for run in self.trials), 600, "both trials train")

    def start(self, *arguments: str, words: tuple[str, ...]) -> Driver:
        """Start a process that is ended with the test."""
        self.drivers.append(Driver(self.nodes, self.home, *arguments, words=words))
        return self.drivers[-1]

    def disturb(self, seconds: float) -> Driver:
        """An urgent job that lasts so long once it has begun."""
        return self.start(str(seconds), words=("-c", URGENT))

    def check(self, tmp_path: Path) -> str:
        """Every trial ends with the weights and the journal of an undisturbed training."""
        for run in self.trials:
            trial = Finished.load(run.directory / RECORD)
            assert trial is not None
            expected = undisturbed.train(trial.recipe, tmp_path / f"alone-{run.name}", world_size=1)
            assert same(state(run), expected["state"])
            mine = {key: points for key, points in journal_of(run).items() if key.startswith("train/")}
            theirs = expected["journal"].items()
            assert mine == {key: points for key, points in theirs if key.startswith("train/")}
        return "bit for bit"


@pytest.fixture
def disturbed(
    nodes: Nodes, small_recipe: dict[str, Any], tmp_path: Path
) -> Iterator[Callable[[str], DisturbedSweep]]:
    started: list[DisturbedSweep] = []

    def start(name: str) -> DisturbedSweep:
        started.append(DisturbedSweep(nodes, tmp_path, small_recipe, name))
        return started[-1]

    yield start
    for sweep in started:
        for driver in sweep.drivers:
            driver.kill()


def test_urgent_job_killed(disturbed: Callable[..., DisturbedSweep], tmp_path: Path, report: Any) -> None:
    sweep = disturbed("urgent-killed")
    urgent = sweep.disturb(3600)
    wait_until(lambda: urgent.said("it has its CPUs"), 300, "the urgent job begins")
    before = [step_of(run) for run in sweep.trials]
    urgent.kill()
    struck = time.monotonic()
    wait_until(lambda: sweep.sweep.said("  running  ", struck), 120, "a trial comes back")
    back = time.monotonic() - struck
    wait_until(lambda: step_of(sweep.trials[0]) > before[0], 300, "a trial goes on")
    again = time.monotonic() - struck
    assert sweep.sweep.finish(1800) == 0, sweep.sweep.output
    report(
        "urgent job SIGKILL, a sweep has yielded",
        back,
        again,
        "its trials went on from where they were",
        sweep.check(tmp_path),
    )


def test_sweep_killed_while_its_trials_have_yielded(
    disturbed: Callable[..., DisturbedSweep], tmp_path: Path, report: Any
) -> None:
    sweep = disturbed("yielded-killed")
    urgent = sweep.disturb(20)
    wait_until(lambda: urgent.said("it has its CPUs"), 300, "the urgent job begins")
    sweep.sweep.kill()
    assert urgent.finish(600) == 0, urgent.output
    struck = time.monotonic()
    before = [step_of(run) for run in sweep.trials]
    resumed = sweep.start("--resume", sweep.name, words=SWEEP)
    wait_until(lambda: step_of(sweep.trials[0]) > before[0], 600, "a trial goes on")
    again = time.monotonic() - struck
    assert resumed.finish(1800) == 0, resumed.output
    report(
        "sweep driver SIGKILL while its trials have yielded",
        None,
        again,
        "`sweep --resume` goes on from where they had yielded",
        sweep.check(tmp_path),
    )


def test_trials_killed_as_they_are_asked_to_yield(
    disturbed: Callable[..., DisturbedSweep], tmp_path: Path, report: Any
) -> None:
    def trials() -> list[psutil.Process]:
        found = []
        for node in sweep.nodes.nodes:
            for process in family(node.process.pid):
                try:
                    found += [process] if "ImplicitFunc" in " ".join(process.cmdline()) else []
                except psutil.NoSuchProcess:
                    continue
        return found

    sweep = disturbed("asked-killed")
    urgent = sweep.disturb(20)
    wait_until(lambda: urgent.said("is asked to yield"), 300, "a trial is asked")
    kill(trials())
    struck = time.monotonic()
    wait_until(lambda: urgent.said("it has its CPUs"), 300, "the urgent job begins")
    begun = time.monotonic() - struck
    assert urgent.finish(600) == 0, urgent.output
    assert sweep.sweep.finish(1800) == 0, sweep.sweep.output
    report(
        "trials SIGKILL as they are asked to yield",
        begun,
        None,
        "the urgent job began; the trials went on from their last checkpoints after it",
        sweep.check(tmp_path),
    )
