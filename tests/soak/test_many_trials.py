"""Two hundred trivially short trials through one sweep: its driver must not grow with them. `make soak`."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mergevq_platform.sweeps import Random, Rung, Sweep, driver, mean_psnr, uniform

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.timeout(3600)]

TRIALS = 200
MEBIBYTE = 1024**2


def test_the_drivers_memory_does_not_grow_with_the_trials(
    small_recipe: dict[str, Any], ray_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_recipe |= {"steps": 2, "cluster": {"workers": 1, "device": "cpu"}}
    small_recipe["evaluation"] |= {"keeps": [4], "validation_images": 16, "untrained_baseline": False}
    recipe = tmp_path / "trivial.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe))
    sweep = Sweep(
        name="many",
        question="Does anything grow?",
        recipe=str(recipe),
        space={"task.losses.entropy.weight": uniform(0.01, 0.1)},
        search=Random(trials=TRIALS),
        objectives=(mean_psnr(),),
        rung=Rung(keeps=(4,), images=16, probe_images=32),
    )
    seen: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not ended.wait(0.5):
            finished = len(list((ray_home / "ray").glob("many-*/finished.json")))
            seen[finished] = process.memory_info().rss

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began = time.monotonic()
    outcome = driver.sweep(sweep, home=ray_home, name="many")
    seconds = time.monotonic() - began
    ended.set()
    thread.join()
    assert len(outcome.finished) == TRIALS
    early = seen[min(count for count in seen if count >= 20)]
    late = seen[max(seen)]
    inside = sum(trial.seconds for trial in outcome.finished)
    with capsys.disabled():
        print(
            f"\n{TRIALS} trials in {seconds:.0f} s; driver {early / MEBIBYTE:.0f} MiB at trial 20, "
            f"{late / MEBIBYTE:.0f} MiB at the end; {inside / TRIALS:.2f} s inside of a trial"
        )
    assert late - early < 300 * MEBIBYTE
