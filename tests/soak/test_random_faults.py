"""Three hundred steps with a random fault every twenty or so: the end is that of the undisturbed run. `make soak`."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import undisturbed
from disturbance import Disturbed, level
from raynodes import Nodes, newest_checkpoint, step_of, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

STEPS, EVERY, SEED = 300, 20, 0


def test_a_long_training_survives_a_random_fault_every_twenty_steps(
    small_recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_recipe["cluster"] = {"workers": 2, "device": "cpu", "max_failures": -1, "hang_timeout_seconds": 10}
    tree = small_recipe | {"steps": STEPS, "checkpoint_every": 10}
    expected = undisturbed.train(tree, tmp_path / "undisturbed", world_size=2)
    dice = random.Random(SEED)
    storage, happened = tmp_path / "storage", []
    with Nodes().start() as nodes:
        level(nodes, 3)
        run = Disturbed(nodes, tmp_path, tree, "soak", storage=storage)

        def worker_killed() -> None:
            dice.choice(nodes.busy()).workers()[0].kill()

        def worker_stopped() -> None:
            dice.choice(nodes.busy()).workers()[0].send_signal(signal.SIGSTOP)

        def node_killed() -> None:
            dice.choice(nodes.busy()).kill()
            level(nodes, 3)

        def driver_killed() -> None:
            run.driver.kill()
            wait_until(lambda: nodes.left_behind() == ([], []), 120, "the cluster is clean again")
            run.start("--resume", "soak")

        def checkpoint_damaged() -> None:
            (newest_checkpoint(run.run) / "resume.pt").write_bytes(b"torn")
            worker_killed()

        def storage_gone() -> None:
            storage.rename(tmp_path / "away")
            time.sleep(5)
            (tmp_path / "away").rename(storage)

        faults: list[Callable[[], None]] = [
            worker_killed,
            worker_stopped,
            node_killed,
            driver_killed,
            checkpoint_damaged,
            storage_gone,
        ]
        began, due = time.monotonic(), EVERY
        try:
            while due < STEPS - EVERY:
                run.reach(due, 900)
                wait_until(lambda: len(nodes.busy()) == 2, 300, "both workers run")
                fault = dice.choice(faults)
                happened.append(f"{fault.__name__} at {step_of(run.run)}")
                run.strike(fault)
                due = max(due, step_of(run.run)) + dice.randint(EVERY - 5, EVERY + 5)
            run.finish(1800)
            run.check(expected)
        finally:
            run.ended.set()
            run.driver.kill()
    with capsys.disabled():
        print(
            f"\n{len(happened)} faults in {STEPS} steps, {time.monotonic() - began:.0f} s: {', '.join(happened)}"
        )
    assert len(happened) >= 8
