"""The study of early stopping: its trials are real and recorded at every rung, and a replay counts what is left and spent."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import front_stopping as front_stopping_study
from cell_queue import run_cells, stored_result
from front_stopping_cells import KEEPS, SWEEPS
from front_stopping_replay import (
    FIELDS,
    OBJECTIVES,
    SCHEDULERS,
    Replay,
    ReplayedSweep,
    asha,
    front_stopping,
    read_records,
    records,
    replay,
    volume,
)
from front_stopping_summary import SchedulerRow, markdown
from mergevq_platform.sweeps.stopping import FrontStopping


def test_each_sweep_has_sixteen_different_trials_and_comes_whole_after_the_other() -> None:
    names = [cell.name for cell in front_stopping_study.cells(list(SWEEPS), 16, front_stopping_study.TINY)]
    assert names == [f"{sweep}_{trial:02d}" for sweep in SWEEPS for trial in range(16)]
    for choices in SWEEPS.values():
        assert len({repr(choice) for choice in choices}) == len(choices) == 16


@pytest.mark.filterwarnings("ignore:24 images for")
def test_a_trial_is_trained_and_measured_at_every_rung(tmp_path: Path) -> None:
    cells = front_stopping_study.cells(["loss_weights"], 2, front_stopping_study.TINY)
    assert run_cells(cells, tmp_path, say=lambda text: None).failed == []
    rungs = [stored_result(cell.name, tmp_path)["rungs"] for cell in cells]
    for recorded in rungs:
        assert [rung["step"] for rung in recorded] == [1, 2]
        assert all(0 < rung[f"rfd_{keep}"] < 100 for rung in recorded for keep in KEEPS)
        assert all(0 <= rung["knn"] <= 100 for rung in recorded)
        assert recorded[0]["psnr_9"] != recorded[1]["psnr_9"]
    assert rungs[0] != rungs[1]


def sweep(losses: list[list[list[float]]]) -> ReplayedSweep:
    return ReplayedSweep("s", np.array(losses))


LINES = [[[10.0 - rung + trial, 5.0 - trial] for rung in range(4)] for trial in range(5)]  # all on the front


def test_without_a_scheduler_a_replay_spends_and_keeps_everything() -> None:
    for workers in (1, 3, 9):
        assert replay(sweep(LINES), lambda *_: True, workers=workers, order=0) == Replay(1.0, 1.0)


def test_a_replay_counts_the_steps_of_stopped_trials_and_loses_what_they_would_have_reached() -> None:
    alone = replay(sweep(LINES), lambda trial, rung, losses: trial == 2 or rung < 2, workers=2, order=1)
    assert alone.steps_share == (4 + 4 * 2) / 20
    # Up to the worst of each, (11, 5): the trial at (9, 3) has 2 x 2 of the 6 unit squares under the stairs.
    assert alone.volume_share == pytest.approx(4 / 6)


def test_a_trial_that_ends_without_a_finite_objective_has_no_share() -> None:
    broken = [[[1.0, 1.0]], [[2.0, 2.0]], [[math.nan, 0.0]]]
    assert volume(sweep(broken)) == 1.0
    assert volume(sweep(broken), [2]) == 0.0


def test_asha_sees_the_first_objective_alone_and_the_front_sees_all() -> None:
    better_in_second = [[[1.0, 9.0]] * 4, [[2.0, 1.0]] * 4]
    of = sweep(better_in_second)
    first = asha(of, every=1, factor=2)
    assert [first(0, 1, (1.0, 9.0)), first(1, 1, (2.0, 1.0))] == [True, False]
    front = front_stopping(of, FrontStopping(every_steps=1))
    assert [front(0, 1, (1.0, 9.0)), front(1, 1, (2.0, 1.0)), front(2, 1, (2.0, 9.0))] == [True, True, False]


def test_records_come_back_as_they_were_measured(tmp_path: Path) -> None:
    measured = {field: 1.0 + number for number, field in enumerate(FIELDS)}
    results = [{"sweep": "b", "trial": trial, "rungs": [{"step": 1, **measured}]} for trial in (1, 0)]
    file = tmp_path / "records.json"
    file.write_text(records(results, {"steps": 1}))
    (read,) = read_records(file, "distance at 9 and at 36 tokens")
    assert read.name == "b"
    assert read.losses == pytest.approx(np.tile(np.log([1.0, 2.0]), (2, 1, 1)))


def test_the_studys_own_records_hold_three_whole_sweeps_and_every_scheduler_replays_them() -> None:
    for objectives in OBJECTIVES:
        sweeps = read_records(front_stopping_study.RECORDS, objectives)
        assert [one.losses.shape for one in sweeps] == [(16, 8, 2)] * 3
    for name, made in SCHEDULERS.items():
        found = replay(sweeps[0], made(sweeps[0], 0), workers=4, order=0)
        assert 0 < found.volume_share <= 1, name
        assert 0.2 < found.steps_share < 1, name


def test_a_table_marks_what_reaches_the_aim() -> None:
    first, second = list(SCHEDULERS)[:2]
    rows = [
        SchedulerRow("pair", first, "a_sweep", 0.99, 0.98, 1.0, 0.55),
        SchedulerRow("pair", second, "a_sweep", 0.99, 0.98, 1.0, 0.65),
    ]
    text = markdown(rows, 3)
    assert "| pair | a sweep |" in text
    assert f"| {first} | **99.0 [98, 100] @ 55** |" in text
    assert f"| {second} | 99.0 [98, 100] @ 65 |" in text
    assert "60% of the steps in 1 of 1 cases" in text
