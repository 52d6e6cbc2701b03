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


def test_trials_that_yield_end_bit_for_bit_as_undisturbed_ones(
    small_recipe: dict[str, Any], ray_home: Path, tmp_path: Path
) -> None:
    small_recipe |= {"steps": STEPS, "checkpoint_every": 40}
    small_recipe["evaluation"] |= {"keeps": [4, 16], "untrained_baseline": False}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_recipe))
    sweep = Sweep(
        name="yields",
        question="?",
        recipe=str(file),
        space={"task.losses.entropy.weight": choice(0.01, 0.02, 0.03)},
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
    for run, trial in zip(runs[:2], outcome.finished[:2], strict=True):
        alone = tmp_path / run.name
        host = LocalHost(alone)
        loop.train(resolve(trial.recipe), loop.Worker(), host)
        assert same(state(run), state(Run("", alone, str(alone))))
        journal = journal_of(run)
        expected = {step: values["train/total"] for step, values in host.history if "train/total" in values}
        assert journal["train/total"] == expected
        told = (ray_home / "ray" / "yields" / "tune" / run.name / "result.json").read_text().splitlines()
        reports = [report["step"] for report in map(json.loads, told) if not report.get(YIELDED)]
        assert reports == [40, 80, 120, 120], "Ray Tune learns what it would have"
    for run in runs[:2]:
        tag = {found.name: found.tags for found in list_runs(Store.at(ray_home))}[run.name][YIELDED_TAG]
        assert tag.startswith("after step ")
        assert tag.endswith(", to urgent; went on")
    assert (
        YIELDED_TAG not in {found.name: found.tags for found in list_runs(Store.at(ray_home))}[runs[2].name]
    )
