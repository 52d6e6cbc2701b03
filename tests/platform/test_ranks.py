"""The loop on one, two and three ranks that share every batch unevenly: the same steps to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import undisturbed


@pytest.fixture(scope="module")
def trained() -> dict[int, dict[str, dict[int, float]]]:
    return {}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_number_of_ranks_changes_no_loss_and_no_gradient(
    world_size: int, small_recipe: dict[str, Any], tmp_path: Path, trained: dict[int, Any]
) -> None:
    # Batch norm alone sees a rank's images instead of the pass's.
    small_recipe["task"]["losses"]["adversarial"]["discriminator"]["norm"] = "group"
    small_recipe |= {"steps": 3, "global_batch": 10, "micro_batch": 5, "checkpoint_every": 3}
    small_recipe["cluster"] = {"workers": 3, "min_workers": 1, "device": "cpu"}
    trained[world_size] = undisturbed.train(small_recipe, tmp_path / "run", world_size=world_size)["journal"]
    assert trained[world_size]["train/kept_tokens"] == trained[1]["train/kept_tokens"]
    assert len(trained[1]) > 15
    for name, points in trained[1].items():
        if "feature" in name:  # the spread of a rank's own features
            continue
        # Adam's first steps divide by gradients near zero: what follows the first drifts apart.
        assert trained[world_size][name][1] == pytest.approx(points[1], rel=2e-4, abs=2e-5), name
        assert trained[world_size][name][3] == pytest.approx(points[3], rel=5e-2, abs=5e-3), name
