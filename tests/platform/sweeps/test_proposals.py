"""What Optuna is asked to propose does not depend on its version, and which one proposed is recorded."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import optuna
import pytest

from mergevq_platform.evaluation.curve import Curve, lacking_sentences
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.sweeps import (
    Grid,
    Sweep,
    Tpe,
    choice,
    integer,
    log_uniform,
    mean_psnr,
    stored,
    tuning,
    uniform,
)
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.objectives import UntrainedPoint
from mergevq_platform.sweeps.renamed import RENAMED, know_former_names
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.terminal import Watch

SPACE: dict[str, Any] = {
    "rate": log_uniform(1e-5, 1e-1),
    "kind": choice({"kind": "a", "sigma": uniform(0.0, 2.0)}, {"kind": "b"}, {"kind": "c"}),
    "count": integer(1, 9),
}


def test_one_objective_gets_the_trials_that_optuna_4_and_5_agree_on() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=tuning.tpe_sampler(3))
    proposed, running = [], []
    for _ in range(30):
        trial = study.ask()
        values = spaces.walked(SPACE, spaces.suggested(trial))[0]
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
    assert stored.optuna_version(sweep) == optuna.__version__
    assert stored.optuna_version(Sweep(**{**vars(sweep), "search": Grid()})) is None
    settings = SweepSettings("s", "home", None, None, "uid", "cpu", optuna="4.0.0")
    stored.warn_of_another_optuna(settings, "4.0.0")
    stored.warn_of_another_optuna(settings, None)
    assert capsys.readouterr().err == ""
    stored.warn_of_another_optuna(settings, "5.0.0")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: sweep 's' began with Optuna 4.0.0, and here is 5.0.0")


def test_a_sweep_notes_the_version_and_opens_where_none_was_noted() -> None:
    before = asdict(SweepSettings("s", "h", None, None, "u", "cpu"))
    del before["optuna"]
    assert SweepSettings(**before).optuna is None


def test_settings_are_read_as_they_were_stored(tmp_path: Path) -> None:
    reference = UntrainedPoint(frechet=0.5, probe=12.0)
    settings = SweepSettings("s", str(tmp_path), None, None, "uid", "cpu", reference, optuna.__version__)
    settings.run("s").directory.mkdir(parents=True)
    sweep = Sweep(
        name="s",
        question="?",
        recipe="demo",
        space={"steps": choice(1, 2)},
        search=Tpe(trials=2),
        objectives=(mean_psnr(),),
    )
    settings.save(sweep)
    definition, opened = stored.resumed("s", tmp_path, tracking_uri=None)
    assert opened == settings
    assert (definition.space, definition.search) == (sweep.space, sweep.search)
    file = tmp_path / "ray" / "s" / "place.json"
    assert json.loads(file.read_text())["optuna"] == optuna.__version__


def test_what_earlier_versions_pickled_is_found_by_its_former_name() -> None:
    know_former_names()
    for former, now in RENAMED.items():
        assert resolve_name(former) is resolve_name(now)
    # As a sweep of before holds its settings: by module and name.
    settings = SweepSettings("s", "h", None, None, "u", "cpu")
    text = pickle.dumps(settings, protocol=0)
    former = text.replace(
        b"mergevq_platform.sweeps.stored\nSweepSettings", b"mergevq_platform.sweeps.trial\nPlace"
    )
    assert former != text
    assert pickle.loads(former) == settings
    watch = Watch.__new__(Watch)
    watch.__setstate__({"place": settings})
    assert watch.settings == settings
    assert pickle.loads(pickle.dumps(watch)).settings == settings


def test_an_objective_of_before_is_read_by_its_former_modules() -> None:
    # An objective is pickled by value: it names, by module, the functions that its body calls.
    know_former_names()
    former = pickle.loads(b"cmergevq_platform.curves\nlacking_sentences\n.")
    assert former is lacking_sentences
    assert pickle.loads(b"cmergevq_platform.curves\nCurve\n.") is Curve
    assert pickle.loads(b"cmergevq_platform.generator_report\nGeneratorReport\n.") is GeneratorReport
