"""Delivery to a real MLflow store: everything arrives, once, and no server can hold a run up."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mergevq.errors import InputError
from mergevq_platform.tracking import shared_view
from mergevq_platform.tracking import store as tracking_store
from mergevq_platform.tracking.curve import open_for_curve
from mergevq_platform.tracking.delivery import Delivery, DeliveryHeld
from mergevq_platform.tracking.journal import Journal
from mergevq_platform.tracking.links import curve_link
from mergevq_platform.tracking.listing import find_run, list_runs, remove_run, stored_curve
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import JOURNAL_NAME, RunIdentity, read_identity, read_journal
from mergevq_platform.tracking.shared_view import link
from mergevq_platform.tracking.store import Store, import_mlflow
from mergevq_platform.tracking.ui import UiServer, describe, serve_ui
from mergevq_platform.tracking.view_state import TAG_PREFIX, decoded
from mergevq_platform.tracking.writer import Writer, sync

PLATFORM = Path(__file__).parents[3] / "platform"


@pytest.fixture(scope="module", autouse=True)
def mlflow_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("DO_NOT_TRACK", "true")
        # A refused connection is tried again after 2, 4, ... seconds otherwise.
        patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.at(tmp_path_factory.mktemp("store"))
    store.prepare()
    return store


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[UiServer]:
    with UiServer(store, port=_free_port()) as server:
        yield server


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def me(request: pytest.FixtureRequest) -> RunIdentity:
    return RunIdentity(name="run", experiment=request.node.name, user="someone")


def history(store: Store, uid: str) -> dict[str, Counter[int]]:
    """How often each step of each metric is in the store, over all runs with this uid."""
    client = store.client()
    counts: dict[str, Counter[int]] = {}
    for run in [run for run in list_runs(store) if run.uid == uid]:
        for key in run.metrics:
            steps = [metric.step for metric in client.get_metric_history(run.run_id, key)]
            counts.setdefault(key, Counter()).update(steps)
    return counts


def fill(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.append_metrics(step, {"train/total": 1 / (step + 1), "train/recovery": 0.5})


def test_everything_in_the_journal_arrives(store: Store, run_dir: Path, me: RunIdentity) -> None:
    recorder = LocalRecorder(run_dir, store, me, interval_seconds=0.05)
    recorder.params({"model.depth": 6, "keep.kind": "uniform"})
    recorder.tags({"variant": "gr", "mlflow.note.content": "a **note**"})
    for step in range(1100):
        recorder.metrics(step, {"train/total": 1 / (step + 1), "train/gap": math.nan})
    recorder.curve({64: {"psnr": 22.0}, 4: {"psnr": 15.0}})
    recorder.text("| K | psnr |", "curve/table.md")
    recorder.dataset(name="shapes", digest="abc", source="data/shapes")
    report = recorder.close("FINISHED")
    assert report is not None
    assert report.complete
    assert report.sent_metrics == 2204  # the axis of the curve among them
    client = store.client()
    assert report.run_id is not None
    run = client.get_run(report.run_id)
    last = list(read_journal(run_dir / JOURNAL_NAME))[-1]
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        me.created_ms,
        last.time_ms,
    )
    assert run.info.run_name == "run"
    assert run.data.params == {"model.depth": "6", "keep.kind": "uniform"}
    assert run.data.tags["variant"] == "gr"
    assert run.data.tags["mergevq.uid"] == me.uid
    assert run.data.tags["mlflow.user"] == "someone"
    assert run.inputs.dataset_inputs[0].dataset.name == "shapes"
    steps = [metric.step for metric in client.get_metric_history(report.run_id, "train/total")]
    assert sorted(steps) == list(range(1100))
    assert math.isnan(client.get_metric_history(report.run_id, "train/gap")[0].value)
    assert [file.path for file in client.list_artifacts(report.run_id, "curve")] == ["curve/table.md"]
    assert run.info.artifact_uri.startswith(str(store.artifact_root))


def test_syncing_again_changes_nothing(store: Store, run_dir: Path, me: RunIdentity) -> None:
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        fill(journal, range(10))
        journal.append_status("FINISHED")
    first = sync(run_dir, store)
    assert (first.sent_metrics, first.complete) == (20, True)
    assert str(first) == f"{store.uri} has everything of run {first.run_id} (20 values sent now)"
    second = sync(run_dir, store)
    assert (second.sent_metrics, second.complete, second.run_id) == (0, True, first.run_id)


def test_a_run_is_found_again_when_the_record_of_what_was_sent_is_lost(
    store: Store, run_dir: Path, me: RunIdentity
) -> None:
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        journal.append_params({"a": 1})
        fill(journal, range(20))
        journal.append_metrics(36, {"curve/psnr": 1.0})
        journal.append_metrics(4, {"curve/psnr": 1.0})
        journal.append_status("FINISHED")
    first = sync(run_dir, store)
    (run_dir / "journal.sent.json").unlink()
    again = sync(run_dir, store)
    assert (again.run_id, again.sent_metrics) == (first.run_id, 0)
    counts = history(store, me.uid)
    assert counts["train/total"] == Counter(range(20))
    assert counts["curve/psnr"] == Counter([36, 4])


def test_a_journal_begun_anew_after_its_loss_doubles_nothing(
    store: Store, run_dir: Path, me: RunIdentity
) -> None:
    for steps, params in ((range(15), {"a": 1, "b": 1}), (range(10, 30), {"a": 1, "b": 2})):
        with Journal(run_dir / JOURNAL_NAME, me) as journal:
            journal.append_params(params)
            fill(journal, steps)
            journal.append_status("FINISHED")
        report = sync(run_dir, store)
        (run_dir / JOURNAL_NAME).unlink()
    assert history(store, me.uid)["train/total"] == Counter(range(30))
    run = find_run(store, me.uid)
    assert run.params == {"a": "1", "b": "1"}
    assert report.run_id is not None
    assert store.client().get_run(report.run_id).data.tags["changed.b"] == "2"


def test_a_curve_is_read_whole_wherever_its_details_lie(
    store: Store, tmp_path: Path, me: RunIdentity
) -> None:
    whole = {64: {"psnr": 22.0, "bits_source": 64.0}, 4: {"psnr": 15.0, "bits_source": 9.0}}
    before = Path(__file__).with_name("journal_before_details.jsonl")
    (tmp_path / "before").mkdir()
    shutil.copyfile(before, tmp_path / "before" / JOURNAL_NAME)
    sync(tmp_path / "before", store)
    recorder = LocalRecorder(tmp_path / "now", store, me)
    recorder.curve(
        {kept: {"psnr": row["psnr"]} for kept, row in whole.items()},
        {kept: {"bits_source": row["bits_source"]} for kept, row in whole.items()},
    )
    recorder.close("FINISHED")
    old, new = (find_run(store, uid) for uid in (read_identity(before).uid, me.uid))
    assert "curve/bits_source" in old.metrics
    assert "curve_details/bits_source" in new.metrics
    assert stored_curve(store, old) == stored_curve(store, new)
    assert stored_curve(store, new)["bits_source"] == {4: 9.0, 64: 64.0}
    assert old.has_curve
    with open_for_curve(tmp_path / "before") as again:
        assert again.identity.evaluates == old.uid, "an old run that was evaluated is known to be"


KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
from mergevq_platform.tracking.delivery import Delivery
from mergevq_platform.tracking.store import Store

class Dies(Delivery):
    acknowledged = 0

    def _acknowledge(self, position):
        if self.acknowledged == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        self.acknowledged += 1
        super()._acknowledge(position)

delivery = Dies(Path(sys.argv[1]), Store.at(Path(sys.argv[2])))
while delivery.advance():
    pass
"""


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(0, id="run created", marks=pytest.mark.slow),
        pytest.param(1, id="first batch sent"),
        pytest.param(2, id="second batch sent", marks=pytest.mark.slow),
    ],
)
def test_a_writer_killed_between_send_and_acknowledgement_leaves_each_point_once(
    store: Store, run_dir: Path, me: RunIdentity, after: int
) -> None:
    path = run_dir / JOURNAL_NAME
    with Journal(path, me) as journal:
        journal.append_params({"a": 1})
        fill(journal, range(700))
        journal.append_metrics(9, {"curve/psnr": 17.0})
        home = Path(store.uri.removeprefix("sqlite:///")).parent
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_BETWEEN, str(path), str(home), str(after)],
            env=os.environ | {"PYTHONPATH": f"{PLATFORM}{os.pathsep}{PLATFORM.parent}"},
            capture_output=True,
            text=True,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        sent = sum(steps.total() for steps in history(store, me.uid).values())
        assert (sent > 0) == (after > 0)
        fill(journal, range(700, 720))
        journal.append_metrics(4, {"curve/psnr": 15.0})
        journal.append_status("FINISHED")
    report = sync(run_dir, store)
    assert report.complete
    # The database would swallow exact copies; other servers do not, so none may be sent.
    assert report.sent_metrics == 2 * 720 + 2 * 2 - sent  # the points of the curve, and where they lie
    counts = history(store, me.uid)
    assert counts["train/total"] == counts["train/recovery"] == Counter(range(720))
    assert counts["curve/psnr"] == counts["curve/kept_tokens"] == Counter([9, 4])
    assert len([run for run in list_runs(store) if run.uid == me.uid]) == 1


TRAINS = """
import sys, time
from pathlib import Path
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.store import Store

recorder = LocalRecorder(Path(sys.argv[1]), Store.at(Path(sys.argv[2])), interval_seconds=0.01)
recorder.running()
first, last = int(sys.argv[3]), int(sys.argv[4])
for step in range(first, last):
    recorder.metrics(step, {"train/total": 1 / (step + 1), "train/recovery": 0.5})
    time.sleep(0.001)
    if step == last - 1:
        print("there", flush=True)
        time.sleep(60)
"""


def test_a_training_killed_and_resumed_from_its_checkpoint_has_each_step_once(
    store: Store, run_dir: Path, me: RunIdentity
) -> None:
    Journal(run_dir / JOURNAL_NAME, me).close()
    home = Path(store.uri.removeprefix("sqlite:///")).parent
    for first, last in ((0, 400), (300, 800)):
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINS, str(run_dir), str(home), str(first), str(last)],
            env=os.environ | {"PYTHONPATH": f"{PLATFORM}{os.pathsep}{PLATFORM.parent}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "there\n"
        finally:
            process.kill()
            process.wait()
    with open(run_dir / JOURNAL_NAME, "ab") as journal:
        journal.write(b'{"seq":')  # and in the middle of a line
    recorder = LocalRecorder(run_dir, store, interval_seconds=0.05)
    fill(recorder.journal, range(700, 1000))
    report = recorder.close("FINISHED")
    assert report is not None
    assert report.complete
    counts = history(store, me.uid)
    assert counts["train/total"] == counts["train/recovery"] == Counter(range(1000))
    assert find_run(store, me.uid).status == "FINISHED"


class Wire:
    """A loopback wire to a server that can be cut: `pass`, `refuse`, `hang`, or `mute` (answers are lost)."""

    def __init__(self, port: int) -> None:
        self.mode = "pass"
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                if self.mode == "refuse":
                    inner.close()
                    continue
                outer = socket.create_connection(("127.0.0.1", self._target))
                for pair in ((inner, outer, False), (outer, inner, True)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.mode == "hang":
                    time.sleep(0.05)
                if self.mode == "refuse" or (self.mode == "mute" and answers):
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def wire(server: UiServer) -> Iterator[Wire]:
    wire = Wire(server.port)
    yield wire
    wire.mode = "pass"
    wire.close()


def test_lost_answers_of_a_server_double_neither_runs_nor_points(
    store: Store, wire: Wire, run_dir: Path, me: RunIdentity
) -> None:
    remote = Store.at(run_dir, wire.url)
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        journal.append_params({"a": 1})
        fill(journal, range(50))
    delivery = Delivery(run_dir / JOURNAL_NAME, remote)
    client = remote.client()
    experiment = remote.experiment_id(client, me.experiment)
    create = client.create_run
    log = client.log_batch

    def muted(call: Any) -> Any:
        def send(*args: Any, **kwargs: Any) -> Any:
            wire.mode = "mute"  # the server does it, three times, and we never hear of it
            try:
                return call(*args, **kwargs)
            finally:
                wire.mode = "pass"

        return send

    delivery._client = client
    client.create_run = muted(create)  # type: ignore[method-assign]
    with pytest.raises(Exception, match="Connection"):
        delivery.advance()
    twins = client.search_runs([experiment])
    assert len(twins) > 1, "the HTTP client did not repeat the request: this test has lost its point"
    client.create_run = create  # type: ignore[method-assign]
    client.log_batch = muted(log)  # type: ignore[method-assign]
    for _ in range(3):  # parameters, then each call for metrics
        with contextlib.suppress(Exception):
            delivery.advance()
    client.log_batch = log  # type: ignore[method-assign]
    while delivery.advance():
        pass
    delivery.close()
    assert len(client.search_runs([experiment])) == 1
    assert history(store, me.uid)["train/total"] == Counter(range(50))


def test_a_server_that_is_away_neither_slows_the_run_nor_loses_a_record(
    store: Store, wire: Wire, run_dir: Path, me: RunIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    wire.mode = "refuse"
    journal = Journal(run_dir / JOURNAL_NAME, me)
    writer = Writer(
        journal.path, Store.at(run_dir, wire.url), interval_seconds=0.1, slowest_seconds=0.5
    ).start()
    slowest = 0.0
    for step in range(300):
        started = time.perf_counter()
        fill(journal, range(step, step + 1))
        slowest = max(slowest, time.perf_counter() - started)
    deadline = time.monotonic() + 20
    while writer.error is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert writer.error is not None
    assert slowest < 0.5  # far above an append, far below a call that waits for a server
    assert not writer.flush(0.2)
    wire.mode = "pass"
    assert writer.flush(20)
    assert writer.error is None
    journal.append_status("FINISHED")
    assert writer.close(20).complete
    journal.close()
    assert history(store, me.uid)["train/total"] == Counter(range(300))
    said = [record.message for record in caplog.records if record.name.endswith("tracking.writer")]
    assert len(said) == 2, "one warning when the server goes, one when it is back"
    assert "the run goes on" in said[0]
    assert "answers again" in said[1]


def test_closing_while_a_server_hangs_takes_no_longer_than_allowed_and_sync_delivers_later(
    store: Store, wire: Wire, run_dir: Path, me: RunIdentity
) -> None:
    wire.mode = "hang"
    remote = Store.at(run_dir, wire.url)
    recorder = LocalRecorder(run_dir, remote, me, interval_seconds=0.05)
    recorder.metrics(0, {"train/total": 1.0})
    started = time.monotonic()
    report = recorder.close("FINISHED", timeout_seconds=1.0)
    assert time.monotonic() - started < 3
    assert report is not None
    assert not report.complete
    assert report.pending_bytes > 0
    wire.mode = "pass"
    deadline = time.monotonic() + 30
    while True:
        try:
            assert sync(run_dir, remote).complete
            break
        except DeliveryHeld:  # the writer's thread is still in its call
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert history(store, me.uid)["train/total"] == Counter([0])


def test_syncing_to_a_server_that_is_away_says_that_nothing_is_lost(run_dir: Path, me: RunIdentity) -> None:
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        fill(journal, range(3))
        journal.append_status("FINISHED")
    with (
        contextlib.closing(Delivery(run_dir / JOURNAL_NAME, Store.at(run_dir))),
        pytest.raises(DeliveryHeld, match="another process is delivering this run"),
    ):
        sync(run_dir, Store.at(run_dir))
    with pytest.raises(InputError, match="nothing is lost, sync again later"):
        sync(run_dir, Store.at(run_dir, f"http://127.0.0.1:{_free_port()}"))
    with pytest.raises(InputError, match="holds no journal"):
        sync(run_dir / "absent", Store.at(run_dir))


def test_a_run_that_died_without_a_word_is_killed_in_the_store_until_it_is_resumed(
    store: Store, run_dir: Path, me: RunIdentity
) -> None:
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        journal.append_status("RUNNING")
        fill(journal, range(3))
        assert sync(run_dir, store).complete
        assert find_run(store, me.uid).status == "RUNNING"
    assert sync(run_dir, store).complete
    assert find_run(store, me.uid).status == "KILLED"
    recorder = LocalRecorder(run_dir, store, interval_seconds=0.05)
    recorder.running()
    fill(recorder.journal, range(6))
    assert recorder.flush()
    resumed = find_run(store, me.uid)
    assert resumed.status == "RUNNING"
    recorder.close("FINISHED")
    assert find_run(store, me.uid).status == "FINISHED"
    assert history(store, me.uid)["train/total"] == Counter(range(6))


def test_a_delivery_leaves_a_shared_view_and_sync_restores_one_that_someone_deleted(
    store: Store, run_dir: Path, me: RunIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views() -> dict[str, str]:
        tags = store.client().get_experiment_by_name(me.experiment).tags
        return {
            key.removeprefix(TAG_PREFIX): value for key, value in tags.items() if key.startswith(TAG_PREFIX)
        }

    recorder = LocalRecorder(run_dir, store, me)
    recorder.curve({4: {"psnr": 15.0}, 9: {"psnr": 18.0}})
    report = recorder.close("FINISHED")
    assert report is not None
    assert (report.complete, report.view_error) == (True, None)
    written = views()
    own = f"mergevq-{me.uid[:12]}"
    assert set(written) == {"mergevq", own}
    stored = decoded(written["mergevq"])
    assert stored is not None
    assert stored.name == "MergeVQ: trade-off"
    assert "curve/psnr" in [card.get("metricKey") for card in stored.state["compareRunCharts"]]
    sync(run_dir, store)
    assert views() == written, "what stands there is left alone"
    assert report.experiment_id is not None
    store.client().delete_experiment_tag(report.experiment_id, f"{TAG_PREFIX}mergevq")
    sync(run_dir, store)
    assert set(views()) == {"mergevq", own}

    shown = link(store, "http://host:5000", me.experiment, me.name)
    assert shown is not None
    assert (shown.reason, shown.address) == (
        None,
        curve_link("http://host:5000", report.experiment_id, view=own),
    )
    monkeypatch.setattr(shared_view, "KEPT_VIEWS", 0)
    shown = link(store, "http://host:5000", me.experiment)
    assert shown is not None
    assert "viewStateShareKey=mergevq&" in shown.address
    assert set(views()) == {"mergevq"}, "views of single runs do not pile up"
    assert link(store, "http://host:5000", "no such experiment") is None


def test_one_journal_is_delivered_to_two_stores_independently(
    store: Store, server: UiServer, run_dir: Path, me: RunIdentity
) -> None:
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        fill(journal, range(3))
        journal.append_status("FINISHED")
    other = Store.at(run_dir, server.url.replace("http://", "http://user:secret@"))
    first = sync(run_dir, store)
    second = sync(run_dir, other)
    assert first.run_id == second.run_id  # the server serves the same database, and the uid finds the run
    assert (first.sent_metrics, second.sent_metrics) == (6, 0)
    assert "secret" not in (run_dir / "journal.sent.json").read_text()
    assert "secret" not in second.store


def test_texts_longer_than_mlflow_takes_are_cut_and_kept_whole_as_artifacts(
    store: Store, run_dir: Path, me: RunIdentity
) -> None:
    long = "ä" * 9000
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        journal.append_params({"model/long": long} | {f"p{index}": "x" * 5000 for index in range(150)})
        journal.append_tags({"long": long})
        journal.append_status("FINISHED")
    report = sync(run_dir, store)
    assert report.run_id is not None
    run = find_run(store, me.uid)
    assert len(run.params) == 151
    assert run.params["model/long"] == "ä" * 5999 + "…"
    client = store.client()
    files = {Path(file.path).name: file for file in client.list_artifacts(report.run_id, "long_values")}
    assert set(files) == {"model_long.txt", "long.txt"}
    downloaded = client.download_artifacts(report.run_id, files["model_long.txt"].path, str(run_dir))
    assert Path(downloaded).read_text() == long
    assert sync(run_dir, store).complete


def test_an_artifact_that_has_gone_is_reported_and_does_not_stop_the_rest(
    store: Store, run_dir: Path, me: RunIdentity
) -> None:
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        (run_dir / "grid.png").write_bytes(b"x")
        journal.append_artifact(run_dir / "grid.png")
        (run_dir / "grid.png").unlink()
        fill(journal, range(1))
        journal.append_status("FINISHED")
    report = sync(run_dir, store)
    assert report.missing_artifacts == ("grid.png",)
    assert report.complete
    assert history(store, me.uid)["train/total"] == Counter([0])


def test_trials_are_nested_under_their_sweep_even_when_they_arrive_first(
    store: Store, tmp_path: Path, me: RunIdentity
) -> None:
    trial = RunIdentity(name="trial", experiment=me.experiment, kind="trial", parent=me.uid)
    with Journal(tmp_path / "trial" / JOURNAL_NAME, trial) as journal:
        fill(journal, range(2))
        journal.append_status("FINISHED")
    report = sync(tmp_path / "trial", store)
    Journal(tmp_path / "sweep" / JOURNAL_NAME, me).close()
    sweep = sync(tmp_path / "sweep", store)
    sync(tmp_path / "trial", store)
    assert report.run_id is not None
    tags = store.client().get_run(report.run_id).data.tags
    assert tags["mlflow.parentRunId"] == sweep.run_id
    assert tags["mergevq.parent"] == me.uid


def test_a_second_evaluation_is_a_linked_run_of_the_store(
    store: Store, run_dir: Path, me: RunIdentity
) -> None:
    LocalRecorder(run_dir, None, me).close("FINISHED")
    for value in (15.0, 16.0):
        recorder = LocalRecorder.around(open_for_curve(run_dir), store)
        recorder.curve({36: {"psnr": value + 5}, 4: {"psnr": value}})
        recorder.close("FINISHED")
    runs = list_runs(store, me.experiment)
    assert sorted(run.kind for run in runs) == ["evaluation", "training"]
    training, evaluation = sorted(runs, key=lambda run: run.kind, reverse=True)
    assert evaluation.evaluates == training.uid
    assert stored_curve(store, training) == {"psnr": {4: 15.0, 36: 20.0}}
    assert stored_curve(store, evaluation) == {"psnr": {4: 16.0, 36: 21.0}}
    assert list(stored_curve(store, training)["psnr"]) == [4, 36]


def test_a_run_deleted_in_the_store_is_not_made_again_and_says_what_to_do(
    store: Store, run_dir: Path, me: RunIdentity
) -> None:
    with Journal(run_dir / JOURNAL_NAME, me) as journal:
        fill(journal, range(2))
        sync(run_dir, store)
        remove_run(store, find_run(store, me.uid))
        fill(journal, range(4))
    with pytest.raises(InputError, match=r"was deleted in .*: restore it there"):
        sync(run_dir, store)
    assert list_runs(store, me.experiment) == []
    with pytest.raises(InputError, match="no run"):
        find_run(store, me.uid)


def test_runs_are_found_by_name_and_by_the_beginning_of_their_ids(
    store: Store, tmp_path: Path, me: RunIdentity
) -> None:
    for index in range(2):
        again = RunIdentity(name=f"find-{index // 2}", experiment=me.experiment)
        Journal(tmp_path / str(index) / JOURNAL_NAME, again).close()
        report = sync(tmp_path / str(index), store)
        assert find_run(store, again.uid[:8]).uid == again.uid
        assert report.run_id is not None
        assert find_run(store, report.run_id[:8]).uid == again.uid
    with pytest.raises(InputError, match=r"2 runs are called 'find-0'.*name one by its id"):
        find_run(store, "find-0")


PREPARE = "import sys; from pathlib import Path; from mergevq_platform.tracking.store import Store; {}"


def test_processes_that_meet_a_new_home_at_once_share_one_database_and_experiment(tmp_path: Path) -> None:
    code = PREPARE.format("s = Store.at(Path(sys.argv[1])); print(s.experiment_id(s.client(), 'shared'))")
    environ = os.environ | {"PYTHONPATH": f"{PLATFORM}{os.pathsep}{PLATFORM.parent}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "home")],
            env=environ,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] == "1\n"
    assert outputs[0][1] == "", "preparing the store is quiet"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["home"], "nothing is left in the cwd"


def test_a_database_of_an_older_mlflow_is_upgraded_and_a_copy_kept(tmp_path: Path) -> None:
    import_mlflow()
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    store = Store.at(tmp_path)
    engine = utils.create_sqlalchemy_engine_with_retry(store.uri)
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(store.uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "7f2a7d5fae7d")  # MLflow 2.8
    engine.dispose()
    store.prepare()
    assert store.experiment_id(store.client(), "new") is not None
    assert (tmp_path / "mlflow.db.7f2a7d5fae7d").is_file()


def test_a_prepared_database_is_known_again_without_importing_mlflow(tmp_path: Path, store: Store) -> None:
    code = PREPARE.format("Store.at(Path(sys.argv[1])).prepare(); print('mlflow' in sys.modules)")
    environ = os.environ | {"PYTHONPATH": f"{PLATFORM}{os.pathsep}{PLATFORM.parent}"}
    database = Path(store.uri.removeprefix("sqlite:///"))
    prepared = [sys.executable, "-c", code, str(database.parent)]
    assert subprocess.check_output(prepared, env=environ, text=True) == "False\n"


def test_a_database_is_not_known_where_it_or_mlflow_is_another(tmp_path: Path, store: Store) -> None:
    made, copy = Path(store.uri.removeprefix("sqlite:///")), tmp_path / "mlflow.db"
    note = tmp_path / "mlflow.db.prepared"
    shutil.copyfile(made.with_name(note.name), note)
    assert not tracking_store._as_noted(copy), "the note outlived its database"
    shutil.copyfile(made, copy)
    assert tracking_store._as_noted(copy)
    written = note.read_text()
    note.write_text(written.replace('"mlflow": "', '"mlflow": "0.'))
    assert not tracking_store._as_noted(copy)
    note.write_text(written)
    with contextlib.closing(sqlite3.connect(copy)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '7f2a7d5fae7d'")
    assert not tracking_store._as_noted(copy)


def test_a_database_of_a_newer_mlflow_says_what_to_do(tmp_path: Path, store: Store) -> None:
    shutil.copyfile(store.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(InputError, match="written by a newer MLflow"):
        Store.at(tmp_path).prepare()


def test_a_deleted_experiment_says_what_to_do(store: Store) -> None:
    client = store.client()
    client.delete_experiment(store.experiment_id(client, "gone"))
    with pytest.raises(InputError, match="experiment 'gone' was deleted"):
        store.experiment_id(client, "gone")


def test_a_store_is_sqlite_at_home_unless_a_uri_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    default = Store.at(Path("runs"))
    assert default.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert default.artifact_root == (tmp_path / "runs" / "artifacts").as_uri()
    assert Store.at(tmp_path, "sqlite:///other.db").uri == f"sqlite:///{tmp_path}/other.db"
    assert Store.at(tmp_path, "http://host:5000/").uri == "http://host:5000"
    assert Store.at(tmp_path, "http://host:5000").artifact_root is None
    assert pickle.loads(pickle.dumps(default)) == default
    for refused in ("mlruns", "file:///tmp/mlruns", "/abs/mlruns", "sqlite:///"):
        with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
            Store.at(tmp_path, refused)


def test_a_home_with_blanks_and_letters_of_any_language_works(tmp_path: Path) -> None:
    home = tmp_path / "mes données"
    recorder = LocalRecorder(home / "run", Store.at(home), RunIdentity(name="é", experiment="../ö 1"))
    recorder.text("été", "tables/été 1.md")
    report = recorder.close("FINISHED")
    assert report is not None
    assert report.complete
    assert [file.name for file in (home / "artifacts").rglob("*.md")] == ["été 1.md"]
    with pytest.raises(InputError, match="set MERGEVQ_HOME"):
        Store.at(tmp_path / "100%")


def test_a_home_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set MERGEVQ_HOME or MLFLOW_TRACKING_URI"):
        Store.at(tmp_path / "file" / "runs").prepare()


def test_what_the_user_has_set_about_mlflow_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    import_mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "20"


def test_importing_the_tracking_package_does_not_import_mlflow() -> None:
    code = (
        "import sys, mergevq_platform.storage.settings, mergevq_platform.tracking.recorder;"
        "import mergevq_platform.tracking.ui, mergevq_platform.tracking.system;"
        "assert 'mlflow' not in sys.modules"
    )
    environ = os.environ | {"PYTHONPATH": f"{PLATFORM}{os.pathsep}{PLATFORM.parent}"}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)


def test_the_server_listens_on_loopback_and_its_database_is_not_on_its_command_line(server: UiServer) -> None:
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert "mlflow.db" not in " ".join(word for process in family for word in process.cmdline())
    hosts = {c.laddr.ip for process in family for c in process.net_connections() if c.status == "LISTEN"}
    assert hosts == {"127.0.0.1"}


def test_the_interface_says_where_the_curves_are(store: Store, server: UiServer) -> None:
    with urllib.request.urlopen(f"{server.url}/health") as answer:
        assert answer.status == 200
    said: list[str] = []
    assert serve_ui(Store.at(Path(), server.url), say=said.append) == 0
    assert said == describe(store, server.url)
    line = next(line for line in said if line.startswith("test_a_second_evaluation"))
    assert "2 runs, 2 with a curve" in line
    assert f"{server.url}/#/experiments/" in line
    with pytest.raises(InputError, match="is a server already"):
        UiServer(Store.at(Path(), server.url))


def test_a_port_in_use_is_named(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} on 127.0.0.1"):
            UiServer(store, port=port)


def test_stopping_the_interface_leaves_no_process_behind(store: Store) -> None:
    home = Path(store.uri.removeprefix("sqlite:///")).parent
    code = (
        "import sys; from pathlib import Path; from mergevq_platform.tracking.store import Store;"
        "from mergevq_platform.tracking.ui import serve_ui;"
        "sys.exit(serve_ui(Store.at(Path(sys.argv[1])), port=int(sys.argv[2]),"
        "say=lambda line: print(line, flush=True)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(home), str(_free_port())],
        env=os.environ | {"PYTHONPATH": f"{PLATFORM}{os.pathsep}{PLATFORM.parent}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
    finally:
        process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
