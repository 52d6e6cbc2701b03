"""What Optuna is asked to propose does not depend on its version, and which one proposed is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from mergevq_platform.sweeps import Grid, Sweep, Tpe, choice, driver, integer, log_uniform, mean_psnr, uniform
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.trial import Place

SPACE: dict[str, Any] = {
    "rate": log_uniform(1e-5, 1e-1),
    "kind": choice({"kind": "a", "sigma": uniform(0.0, 2.0)}, {"kind": "b"}, {"kind": "c"}),
    "count": integer(1, 9),
}


def test_one_objective_gets_the_trials_that_optuna_4_and_5_agree_on() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=driver.tpe_sampler(3))
    proposed, running = [], []
    for _ in range(30):
        trial = study.ask()
        values = spaces.chosen(SPACE, trial)
        proposed.append((f"{values['rate']:.4g}", values["kind"]["kind"], values["count"]))
        worth = abs(values["count"] - 4) + 10 * values["rate"] + values["kind"].get("sigma", 1.0)
        running.append((trial, worth))
        if len(running) == 3:  # side by side
            study.tell(*running.pop(0))
    # Of Optuna 4.9.0 and 5.0.0 alike.
    wanted = [("0.000331", "b", 4), ("0.01691", "b", 2), ("0.001318", "b", 5), ("0.0003581", "a", 8)]
    assert proposed[-4:] == wanted


def test_the_version_is_told_where_optuna_proposes(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(
        name="s",
        question="?",
        recipe="demo",
        space={"steps": choice(1, 2)},
        search=Tpe(trials=2),
        objectives=(mean_psnr(),),
    )
    assert driver.optuna_version(sweep) == optuna.__version__
    assert driver.optuna_version(Sweep(**{**vars(sweep), "search": Grid()})) is None
    place = Place("s", "home", None, None, "uid", "cpu", optuna="4.0.0")
    driver._warn_of_another_optuna(place, "4.0.0")
    driver._warn_of_another_optuna(place, None)
    assert capsys.readouterr().err == ""
    driver._warn_of_another_optuna(place, "5.0.0")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: sweep 's' began with Optuna 4.0.0, and here is 5.0.0")


def test_a_sweep_notes_the_version_and_opens_where_none_was_noted(tmp_path: Path) -> None:
    from dataclasses import asdict

    before = {
        key: value
        for key, value in asdict(Place("s", "h", None, None, "u", "cpu")).items()
        if key != "optuna"
    }
    assert Place(**before).optuna is None
