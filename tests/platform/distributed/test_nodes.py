"""A training on a cluster of several nodes, one of which is lost in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raynodes
import undisturbed
from mergevq_platform.storage.runs import Run

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]


def test_a_lost_node_in_mid_run_changes_no_weight_and_no_metric(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["cluster"] = {"workers": 2, "device": "cpu"}
    small_recipe |= {"steps": 20, "checkpoint_every": 5}
    expected = undisturbed.train(small_recipe, tmp_path / "undisturbed", world_size=2)
    run = Run("lost", tmp_path, str(tmp_path / "ray"))
    with raynodes.Nodes().start() as nodes:
        nodes.add(*[raynodes.HERE] * 3)  # one to spare
        driver = raynodes.Driver(
            nodes, tmp_path, raynodes.write_recipe(small_recipe, tmp_path), "--name", "lost"
        )
        raynodes.wait_until(
            lambda: raynodes.step_of(run) >= 7 or driver.process.poll() is not None, 300, "step 7"
        )
        victims = nodes.busy()
        assert len(victims) == 2, driver.output
        victims[-1].kill()
        assert driver.finish() == 0, driver.output
        assert "failed" in driver.output
    assert raynodes.same(raynodes.state(run), expected["state"])
    assert raynodes.journal_of(run) == expected["journal"]
