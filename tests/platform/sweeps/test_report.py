"""What a sweep says of trials that not every number can be had of: all that it can, and never a failure after the last step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mergevq.errors import InputError
from mergevq_platform.evaluation.compare import compare
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.sweeps import (
    Random,
    Sweep,
    explained,
    integer,
    log_uniform,
    mean_log_frechet,
    mean_psnr,
    report,
)
from mergevq_platform.sweeps.finished import Finished
from mergevq_platform.sweeps.stopped import StoppedTrial

SWEEP = Sweep(
    name="s",
    question="q",
    recipe="demo",
    search=Random(trials=6),
    objectives=(mean_psnr(), mean_log_frechet()),
    space={"optimizer.learning_rate": log_uniform(1e-5, 1e-1), "steps": integer(1, 9)},
)


class Recorder:
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """As a recorder's."""
        self.found |= values

    def tags(self, values: dict[str, str]) -> None:
        """As a recorder's."""
        self.found |= values

    def artifact(self, file: Path, directory: str = "") -> None:
        """As a recorder's."""
        assert file.is_file()


def curve(*, without: str = "", data: str = "d" * 64) -> dict[str, Any]:
    rows = [
        {"keep": keep, "merge_ratio": 1 - keep / 16, "rfd_random_v1": 9.0 - keep / 4, "psnr": 10.0 + keep}
        for keep in (4.0, 9.0, 16.0)
    ]
    protocol = {
        "extractor": {"name": "random_v1", "description": "features of a fixed random network"},
        "data": "/data",
        "data_fingerprint": data,
        "images": 32,
        "split": "val",
        "step": 8,
        "ema": True,
        "lacking": {"Fréchet distance": "one image, which has no covariance"} if without else {},
    }
    return {
        "run": "r",
        "rows": [{key: value for key, value in row.items() if key != without} for row in rows],
        "protocol": protocol,
    }


def finished(
    tmp_path: Path, psnrs: list[float], curves: list[dict[str, Any]] | None = None
) -> list[Finished]:
    """Trials as they are read from what they left."""
    found = []
    for i, psnr in enumerate(psnrs):
        trial = Finished(
            name=f"s-{i:03d}",
            params={"optimizer.learning_rate": 10.0 ** (-1 - i / 3), "steps": i % 3 + 1},
            seed=0,
            steps=8,
            objectives={"mean_psnr": psnr, "mean_log_frechet": 1.0},
            curve=curves[i] if curves else curve(),
            drawn={"4": 8},
            seconds=1.0,
            recipe={"name": "x"},
        )
        trial.save(tmp_path / "finished.json")
        record = Finished.load(tmp_path / "finished.json")
        assert record is not None
        found.append(record)
    return found


def reported(trials: list[Finished], folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    recorder = Recorder()
    files = report.write(SWEEP, "s", trials, folder)
    report.record(SWEEP, trials, files, recorder)
    report.show(SWEEP, trials)
    return files, recorder.found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_trial_whose_objective_is_no_number_is_ranked_last_and_named(
    tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = finished(tmp_path, [1.0, value, 3.0, 4.0, 2.0, 0.0])
    winner = report.best(SWEEP, trials)
    assert winner is not None
    assert winner.name == "s-003"
    files, found = reported(trials, tmp_path / "report")
    said = "mean_psnr is no finite number of s-001: not ranked by it"
    assert said in capsys.readouterr().out
    assert said in files["sweep.md"].read_text()
    assert found["mergevq.winner"] == "s-003"
    answer, *note = found["mlflow.note.content"].splitlines()
    assert answer.startswith("**")
    assert answer.endswith("wins: mean_psnr 4 (s-003)**")
    assert f"- {said}" in note
    assert next(line.split(" | ")[0] for line in note if line.startswith("| s-")) == "| s-003"
    assert any(
        "(get-artifact?path=report%2Fpareto_narrow.png&run_uuid=$MLFLOW_RUN_ID)" in line for line in note
    )
    rows = files["trials.csv"].read_text().splitlines()
    assert rows[1].startswith("s-003,")
    assert rows[-1].startswith("s-001,")
    others = [trial for trial in trials if trial.name != "s-001"]
    assert (
        explained.importance(SWEEP, trials)["mean_psnr"] == explained.importance(SWEEP, others)["mean_psnr"]
    )
    assert "mean_log_frechet" not in explained.importance(SWEEP, trials), "it is the same everywhere"


def test_trials_that_were_stopped_early_are_in_the_report(tmp_path: Path) -> None:
    trials = finished(tmp_path, [1.0, 2.0])
    stopped = [StoppedTrial("s-009", {"steps": 9}, 2, 10, "others were better")]
    files = report.write(SWEEP, "s", trials, tmp_path / "report", stopped)
    text = files["sweep.md"].read_text()
    assert "1 of 3 trials were stopped early, which saved " in text
    assert "| s-009 | 2 of 10 | others were better | steps=9 |" in text
    recorder = Recorder()
    report.record(SWEEP, trials, files, recorder, stopped)
    assert recorder.found["sweep/steps_saved"] == 8 / (10 + sum(trial.steps for trial in trials))


def test_a_figure_that_fails_costs_the_figure_alone_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("Invalid bounding box")

    monkeypatch.setattr(report, "pareto_figure", broken)
    (tmp_path / "pareto.png").write_bytes(b"of an earlier report")
    trials = finished(tmp_path, [1.0, 2.0])
    files = report.write(SWEEP, "s", trials, tmp_path)
    assert {"curves.png", "pareto.html", "sweep.md", "winner.yaml"} <= files.keys()
    assert not (tmp_path / "pareto.png").exists()
    (reason, *_) = report.remarks(files)
    assert (
        reason == "pareto.png was not drawn (ValueError: Invalid bounding box): resume the sweep to try again"
    )
    assert reason in files["sweep.md"].read_text()
    assert "pareto_narrow" not in report.note(SWEEP, trials, files)


def test_of_very_many_trials_without_a_number_some_are_named_and_all_counted(tmp_path: Path) -> None:
    trials = finished(tmp_path, [math.nan] * 25)
    (line,) = report.omissions(SWEEP, trials)
    assert line.endswith("s-019 and 5 more, in trials.csv: not ranked by it")
    assert "s-020" not in line


def test_without_any_number_there_is_no_winner_and_everything_else(tmp_path: Path) -> None:
    trials = finished(tmp_path, [math.nan] * 4)
    assert report.best(SWEEP, trials) is None
    files, found = reported(trials, tmp_path / "report")
    assert "winner.yaml" not in files
    assert "pareto.png" in files
    assert not any(key.startswith(("best/", "mergevq.winner")) for key in found)
    assert found["mlflow.note.content"].startswith("**no trial has a finite mean_psnr**")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (curve(data="e" * 64), "were not measured alike (data_fingerprint"),
        (
            curve(without="rfd_random_v1"),
            "has no 'rfd_random_v1' everywhere (one image, which has no covariance",
        ),
    ],
)
def test_curves_that_do_not_go_together_cost_the_figures_alone(
    tmp_path: Path, other: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = finished(tmp_path, [1.0, 2.0], [curve(), other])
    files, found = reported(trials, tmp_path / "report")
    assert sorted(files) == ["next.md", "sweep.md", "trials.csv", "winner.yaml"]
    assert said in files["sweep.md"].read_text()
    assert said in capsys.readouterr().out
    assert found["mergevq.winner"] == "s-001"
    assert "sweep/best_hypervolume" not in found


def test_a_curve_without_distances_is_named_where_curves_are_compared(tmp_path: Path) -> None:
    Curve(**curve(without="rfd_random_v1")).save(tmp_path / "curve.json")
    with pytest.raises(InputError, match="the curve of 'r' has no 'rfd_random_v1' everywhere"):
        compare([str(tmp_path / "curve.json")], home=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_a_range_of_whole_numbers_without_an_end_is_refused(end: float) -> None:
    with pytest.raises(InputError, match=r"the range of 'steps' has (nan|inf) at one end"):
        Sweep(
            name="s",
            question="q",
            recipe="demo",
            search=Random(trials=2),
            objectives=(mean_psnr(),),
            space={"steps": integer(1, end)},  # type: ignore[arg-type]
        )
