"""A sweep that yields to urgent work on the session's cluster, and ends as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergevq_platform import loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import resolve
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps import Grid, Sweep, choice, driver, mean_psnr
from mergevq_platform.sweeps.yielding import YIELDED
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.records import YIELDED_TAG
from mergevq_platform.tracking.store import Store
from raynodes import journal_of, same, state
from urgent_work import urgent_work

pytestmark = pytest.mark.ray
STEPS = 120


@pytest.mark.slow
def test_trials_that_yield_end_bit_for_bit_as_undisturbed_ones(
    small_recipe: dict[str, Any], ray_home: Path, tmp_path: Path
) -> None:
    small_recipe |= {"steps": STEPS, "checkpoint_every": 48}
    small_recipe["evaluation"] |= {"keeps": [4, 16], "untrained_baseline": False}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_recipe))
    sweep = Sweep(
        name="yields",
        question="?",
        recipe=str(file),
        space={"steps": choice(STEPS, STEPS + 1, 2)},
        search=Grid(),
        objectives=(mean_psnr(),),
    )
    runs = [Run(f"yields-{number:03d}", ray_home, str(ray_home / "ray")) for number in range(3)]

    def state_of(run: Run) -> str:
        return {found.name: found.state for found in list_runs(Store.at(ray_home))}.get(run.name, "")

    seen: dict[str, list[str]] = {}

    def looked() -> bool:
        seen["states"] = [state_of(run) for run in runs[:2]]
        said = [f"{run.name} has yielded, with a checkpoint" for run in runs[:2]]
        return set(said) <= set(urgent.said)

    def start() -> bool:
        return all((run.directory / "recipe.yaml").is_file() for run in runs[:2])

    # Both CPUs, which the two first trials hold.
    with urgent_work(start, looked, cpus=2.0) as urgent:
        outcome = driver.sweep(sweep, home=ray_home, name="yields")
    assert urgent.error is None
    assert urgent.held
    assert seen["states"] == ["yielded", "yielded"]
    assert outcome.complete
    assert not outcome.failed
    assert len(outcome.finished) == 3
    alone, host = Run("", tmp_path / "alone", str(tmp_path / "alone")), LocalHost(tmp_path / "alone")
    loop.train(resolve(outcome.finished[0].recipe), loop.Worker(), host)
    assert same(state(runs[0]), state(alone))
    expected = {step: values["train/total"] for step, values in host.history if "train/total" in values}
    assert journal_of(runs[0])["train/total"] == expected
    for run, steps in zip(runs[:2], (STEPS, STEPS + 1), strict=True):
        told = (ray_home / "ray" / "yields" / "tune" / run.name / "result.json").read_text().splitlines()
        reports = [report["step"] for report in map(json.loads, told) if not report.get(YIELDED)]
        assert reports == [48, 96, steps, steps], "Ray Tune learns what it would have"
    tags = {found.name: found.tags for found in list_runs(Store.at(ray_home))}
    for run in runs[:2]:
        assert tags[run.name][YIELDED_TAG].startswith("after step ")
        assert tags[run.name][YIELDED_TAG].endswith(", to urgent; went on")
    assert YIELDED_TAG not in tags[runs[2].name]
