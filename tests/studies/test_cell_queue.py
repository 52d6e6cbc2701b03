"""The queue of a study's cells: each is done once, after what it needs, whatever becomes of the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cell_queue import Cell, StudyProgress, run_cells, stored_result
from mergevq.errors import InputError


def number(value: int, folder: Path) -> dict[str, int]:
    with (folder / "log").open("a") as log:
        log.write(f"{value}\n")
    return {"value": value}


def total(names: tuple[str, ...], folder: Path) -> dict[str, int]:
    return {"total": sum(stored_result(name, folder)["value"] for name in names)}


def broken(folder: Path) -> dict[str, Any]:
    raise ValueError(f"nothing in {folder.name}")


def killed(folder: Path) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def endless(folder: Path) -> dict[str, Any]:
    time.sleep(600)
    return {}


def silent(text: str) -> None:
    del text


def test_a_cell_comes_after_what_it_needs_and_is_done_once(tmp_path: Path) -> None:
    cells = [
        Cell(name="total", run=partial(total, ("one", "two")), needs=("one", "two")),
        Cell(name="one", run=partial(number, 1)),
        Cell(name="two", run=partial(number, 2)),
    ]
    for _ in range(2):
        assert sorted(run_cells(cells, tmp_path, say=silent).done) == ["one", "total", "two"]
    assert stored_result("total", tmp_path) == {"total": 3}
    assert (tmp_path / "log").read_text() == "1\n2\n"


def test_a_result_of_other_settings_is_refused(tmp_path: Path) -> None:
    run_cells([Cell(name="a", run=partial(number, 1), settings={"steps": 1})], tmp_path, say=silent)
    with pytest.raises(InputError, match=r"a\.json is the result of other settings"):
        run_cells([Cell(name="a", run=partial(number, 1), settings={"steps": 2})], tmp_path, say=silent)


def test_what_fails_leaves_its_traceback_and_only_what_needs_it_is_left(tmp_path: Path) -> None:
    cells = [
        Cell(name="broken", run=broken),
        Cell(name="after", run=partial(number, 1), needs=("broken",)),
        Cell(name="other", run=partial(number, 2)),
    ]
    assert run_cells(cells, tmp_path, say=silent) == StudyProgress(["other"], ["broken"], ["after"])
    assert "ValueError: nothing in" in (tmp_path / "broken.failed.txt").read_text()
    mended = [Cell(name="broken", run=partial(number, 3)), *cells[1:]]
    assert run_cells(mended, tmp_path, say=silent).left == []
    assert not (tmp_path / "broken.failed.txt").exists()


def test_no_cell_begins_after_the_limit(tmp_path: Path) -> None:
    outcome = run_cells([Cell(name="a", run=partial(number, 1))], tmp_path, limit_seconds=0, say=silent)
    assert outcome == StudyProgress([], [], ["a"])


@pytest.mark.slow
def test_processes_do_the_cells_survive_a_death_and_end_at_the_limit(tmp_path: Path) -> None:
    cells = [
        Cell(name="killed", run=killed),
        Cell(name="one", run=partial(number, 1)),
        Cell(name="total", run=partial(total, ("one",)), needs=("one",)),
    ]
    outcome = run_cells(cells, tmp_path, processes=2, say=silent)
    assert outcome == StudyProgress(["one", "total"], ["killed"], [])
    assert json.loads((tmp_path / "total.json").read_text())["result"] == {"total": 1}

    endless_cells = [Cell(name="endless", run=endless), Cell(name="later", run=partial(number, 4))]
    outcome = run_cells(endless_cells, tmp_path, processes=1, limit_seconds=1, say=silent)
    assert outcome == StudyProgress([], [], ["endless", "later"])
    assert multiprocessing.active_children() == []
