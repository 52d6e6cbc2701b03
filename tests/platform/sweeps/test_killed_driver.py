"""What a sweep's driver leaves that SIGKILL ends at a bad moment, and that the next one goes on from it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import yaml

from mergevq_platform.storage import checkpoints
from mergevq_platform.sweeps import Grid, Sweep, Trunk, choice, closing, driver, mean_psnr, stored
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.trial_host import RecordingHost
from mergevq_platform.sweeps.trunk import trained_before
from mergevq_platform.sweeps.tune_state import restorable
from mergevq_platform.tracking.journal import JOURNAL_NAME, Journal, RunIdentity
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.store import Store

LOCAL = pyarrow.fs.LocalFileSystem()


def made(**changes: Any) -> Sweep:
    given: dict[str, Any] = {
        "name": "s",
        "question": "?",
        "recipe": "demo",
        "space": {"steps": choice(1, 2)},
        "search": Grid(),
        "objectives": (mean_psnr(),),
    }
    return Sweep(**(given | changes))


def saved(step: int, directory: Path) -> None:
    """A checkpoint, as far as its listing and its step go."""
    directory.mkdir(parents=True)
    (directory / checkpoints.ABOUT).write_text(json.dumps({"step": step, "sha256": {}}))


def test_a_trial_that_goes_on_from_before_its_last_checkpoint_keeps_what_it_saves_now(tmp_path: Path) -> None:
    host = RecordingHost(tmp_path)
    for step in (2, 4, 6, 2, 4):  # Tune had noted none of three when its driver was killed
        host.save(step, lambda directory, step=step: saved(step, directory))
        assert [checkpoints.step_of(place) for place in checkpoints.listed(str(tmp_path))] == [step]


def test_tune_begins_anew_where_the_driver_was_killed_before_a_trial_had_started(tmp_path: Path) -> None:
    assert not restorable(LOCAL, str(tmp_path / "never"))
    (tmp_path / "tuner.pkl").write_bytes(b"of Tune")
    assert not restorable(LOCAL, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_tune_goes_on_from_the_last_state_that_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, searched = json.dumps({"trial_data": []}).encode(), pickle.dumps([1, 2, 3])
    first, second, third = (f"2026-01-01_{hour}-00-00" for hour in (10, 11, 12))
    parts = {first: (state, searched), second: (state, searched[:-4]), third: (state[:9], searched)}
    (tmp_path / "tuner.pkl").write_bytes(b"of Tune")
    for session, (whole, part) in parts.items():
        (tmp_path / f"experiment_state-{session}.json").write_bytes(whole)
        (tmp_path / f"basic-variant-state-{session}.json").write_bytes(part)
    assert restorable(LOCAL, str(tmp_path))
    assert capsys.readouterr().err.count("is not whole; going on from the one before") == 2
    left = [f"basic-variant-state-{first}.json", f"experiment_state-{first}.json", "tuner.pkl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert restorable(LOCAL, str(tmp_path))
    assert capsys.readouterr().err == ""

    (tmp_path / f"experiment_state-{first}.json").write_bytes(b"")
    assert not restorable(LOCAL, str(tmp_path))
    assert "going on from the records of the trials" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_trunk_whose_driver_was_killed_at_its_last_step_ends_finished(tmp_path: Path) -> None:
    settings = SweepSettings("s", str(tmp_path), None, None, "u", "cpu")
    trunk = settings.run("s-trunk")
    saved(6, trunk.directory / checkpoints.directory_name(6))
    with Journal(
        trunk.directory / JOURNAL_NAME, RunIdentity(name="s-trunk", experiment="e", user="me")
    ) as journal:
        journal.append_status("RUNNING")
    base: Any = None  # a trunk that is there is not trained
    forked = trained_before(made(fork=Trunk(steps=6)), settings, base, 12)
    assert forked is not None
    assert forked.fork == f"{trunk.location}@6"
    assert closing.recorded_status(trunk.directory) == "FINISHED"
    assert [run.status for run in list_runs(Store.at(tmp_path))] == ["FINISHED"]


def test_a_sweep_can_be_resumed_as_soon_as_its_name_is_taken(
    small_recipe: dict[str, Any], ray_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_recipe["cluster"] = {"workers": 1, "device": "cpu"}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_recipe))

    def killed(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(driver, "_recorder", killed)
    with pytest.raises(SystemExit):
        driver.sweep(made(recipe=str(file)), home=ray_home, name="named")
    definition, settings = stored.resumed("named", ray_home, tracking_uri=None)
    assert (definition.name, settings.name) == ("s", "named")
