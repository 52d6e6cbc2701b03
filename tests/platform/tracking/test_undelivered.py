"""A run whose records did not reach MLflow ends with a line that says so, and one command delivers them later."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.distributed.run_actor import RemoteRecorder, RunActor
from mergevq_platform.tracking.curve import open_for_curve
from mergevq_platform.tracking.journal import Journal
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.recorder import LocalRecorder, RunStart
from mergevq_platform.tracking.records import JOURNAL_NAME, RunIdentity
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import closing_line
from mergevq_platform.tracking.undelivered import belonging, lacking


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture(params=[401, 403])
def refusing(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that lets nobody in."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def recorded(home: Path, store: Store, *, name: str = "run", experiment: str = "gone") -> LocalRecorder:
    recorder = LocalRecorder(
        home / "ray" / name, store, RunIdentity(name=name, experiment=experiment), interval_seconds=0.05
    )
    recorder.metrics(1, {"train/total": 1.0})
    recorder.close("FINISHED")
    return recorder


def said(recorder: LocalRecorder) -> str:
    return closing_line(recorder, recorder.identity.experiment, sync=recorder.identity.name)


def test_a_run_in_a_deleted_experiment_says_so_and_is_delivered_once_that_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.at(tmp_path)
    client = store.client()
    gone = client.create_experiment("gone", artifact_location=(tmp_path / "gone").as_uri())
    client.delete_experiment(gone)
    line = said(recorded(tmp_path, store))
    assert line.startswith("not in MLflow yet: sqlite:///")
    assert "experiment 'gone' was deleted" in line
    assert line.endswith("mergevq sync run")
    assert "\n" not in line
    client.restore_experiment(gone)
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path))
    assert cli.run(["sync", "run"]) == 0
    assert "has everything of run" in capsys.readouterr().out
    assert lacking(store, [tmp_path / "ray" / "run"], sync="run") is None
    assert said(recorded(tmp_path, store, name="next")).startswith("see it in MLflow")


def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    line = said(recorded(tmp_path, Store.at(tmp_path, "http://127.0.0.1:9")))
    assert line.startswith("not in MLflow yet: http://127.0.0.1:9 lacks records of run (")
    assert line.endswith("mergevq sync run")


def test_a_server_that_lets_nobody_in_is_named(tmp_path: Path, refusing: str) -> None:
    assert said(recorded(tmp_path, Store.at(tmp_path, refusing))).startswith("not in MLflow yet: http")


def test_a_database_that_takes_no_rows_is_named(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    store.prepare()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    assert "database or disk is full" in said(recorded(tmp_path, store))


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, " * 100)
    with pytest.raises(InputError, match=r"mlflow\.db cannot be used .*set MERGEVQ_HOME"):
        Store.at(tmp_path).prepare()


def test_syncing_a_sweep_delivers_its_trials_and_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, ray = Store.at(tmp_path, "http://127.0.0.1:9"), tmp_path / "ray"
    sweep = RunIdentity(name="sweep", experiment="e", kind="sweep")
    Journal(ray / "sweep" / JOURNAL_NAME, sweep).close()
    Journal(ray / "other" / JOURNAL_NAME, RunIdentity(name="other", experiment="e")).close()
    for number in range(2):
        trial = RunIdentity(name=f"sweep-{number:03d}", experiment="e", kind="trial", parent=sweep.uid)
        Journal(ray / trial.name / JOURNAL_NAME, trial).close()
    open_for_curve(ray / "sweep-001", fresh=True).close()
    line = lacking(away, belonging(ray / "sweep"), sync="sweep")
    assert line is not None
    assert "lacks records of sweep, sweep-000, sweep-001 and 1 more" in line
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path))
    assert cli.run(["sync", "sweep"]) == 0
    there = {run.name: run for run in list_runs(Store.at(tmp_path), "e")}
    assert sorted(run.kind for run in there.values()) == ["evaluation", "sweep", "trial", "trial"]
    assert there["sweep-000"].tags["mlflow.parentRunId"] == there["sweep"].run_id


def test_the_first_refusal_is_said_while_the_run_goes_on(tmp_path: Path) -> None:
    start = RunStart(
        directory=tmp_path / "run",
        store=Store.at(tmp_path, "http://127.0.0.1:9"),
        identity=RunIdentity(name="run", experiment="e"),
        params={},
        tags={},
        dataset=None,
        recipe=tmp_path / "recipe.yaml",
    )
    start.recipe.write_text("name: run\n")
    actor = RunActor(start, 1.0)
    actor.recorder.flush(5.0)
    for _ in range(2):
        latest = actor.latest()
    assert len(latest.warnings) == 1
    assert latest.warnings[0].startswith("not in MLflow yet: http://127.0.0.1:9: ")
    actor.recorder.close(timeout_seconds=5.0)


@pytest.mark.parametrize("name", ["__len__", "_writer", "journal", "nothing"])
def test_a_remote_recorder_has_the_recorders_methods_and_no_others(name: str) -> None:
    assert callable(RemoteRecorder(None).metrics)
    with pytest.raises(AttributeError, match=name):
        getattr(RemoteRecorder(None), name)
