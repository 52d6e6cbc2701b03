"""The study of early stopping: its trials are real and recorded at every rung."""

from __future__ import annotations

from pathlib import Path

import pytest

import front_stopping
from cell_queue import run_cells, stored_result
from front_stopping_cells import KEEPS, SWEEPS


def test_each_sweep_has_sixteen_different_trials_and_comes_whole_after_the_other() -> None:
    names = [cell.name for cell in front_stopping.cells(list(SWEEPS), 16, front_stopping.TINY)]
    assert names == [f"{sweep}_{trial:02d}" for sweep in SWEEPS for trial in range(16)]
    for choices in SWEEPS.values():
        assert len({repr(choice) for choice in choices}) == len(choices) == 16


@pytest.mark.filterwarnings("ignore:24 images for")
def test_a_trial_is_trained_and_measured_at_every_rung(tmp_path: Path) -> None:
    cells = front_stopping.cells(["loss_weights"], 2, front_stopping.TINY)
    assert run_cells(cells, tmp_path, say=lambda text: None).failed == []
    rungs = [stored_result(cell.name, tmp_path)["rungs"] for cell in cells]
    for recorded in rungs:
        assert [rung["step"] for rung in recorded] == [1, 2]
        assert all(0 < rung[f"rfd_{keep}"] < 100 for rung in recorded for keep in KEEPS)
        assert all(0 <= rung["knn"] <= 100 for rung in recorded)
        assert recorded[0]["psnr_9"] != recorded[1]["psnr_9"]
    assert rungs[0] != rungs[1]
