"""The journal: what is appended is there, once, whatever happened in between."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import subprocess
import time
from pathlib import Path
from threading import Thread

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergevq.errors import InputError
from mergevq_platform.storage.settings import default_home, read_settings
from mergevq_platform.tracking.curve import append_curve, curve_records, open_for_curve
from mergevq_platform.tracking.journal import Journal, JournalHeld
from mergevq_platform.tracking.links import curve_link
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import (
    JOURNAL_NAME,
    RunIdentity,
    read_identity,
    read_journal,
    read_metrics,
)
from mergevq_platform.tracking.system import SystemSampler, descendants


def identity(name: str = "run") -> RunIdentity:
    return RunIdentity(name=name, experiment="experiment", user="someone")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / JOURNAL_NAME


def test_records_come_back_as_they_were_appended_in_order(path: Path) -> None:
    with Journal(path, identity()) as journal:
        journal.append_params({"model.depth": 6, "keep": [4, 9], "name": "é"})
        journal.append_tags({"commit": "abc"})
        journal.append_metrics(3, {"train/total": 0.1})
        journal.append_dataset(name="shapes", digest="f" * 64, source="data/shapes")
        journal.append_status("FINISHED")
    records = list(read_journal(path))
    assert [record.kind for record in records] == ["run", "params", "tags", "metrics", "dataset", "status"]
    assert [record.seq for record in records] == list(range(6))
    assert records[1].data == {"model.depth": "6", "keep": "[4, 9]", "name": "é"}
    assert records[3].data == {"step": 3, "values": {"train/total": 0.1}}
    assert records[-1].end == path.stat().st_size
    assert read_identity(path) == journal.identity


def test_not_a_number_and_infinities_survive_in_valid_json(path: Path) -> None:
    values = {"a": math.nan, "b": math.inf, "c": -math.inf}
    with Journal(path, identity()) as journal:
        journal.append_metrics(1, values)
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = read_metrics(path)
    assert math.isnan(found["a"][1])
    assert (found["b"][1], found["c"][1]) == (math.inf, -math.inf)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(min_value=0, max_value=399), garbage=st.sampled_from([b"", b"\x00" * 7, b"{]\n", b"\xff"])
)
def test_a_journal_cut_anywhere_keeps_its_whole_records_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("cut") / JOURNAL_NAME
    me = identity()
    with Journal(path, me) as journal:
        for step in range(5):
            journal.append_metrics(step, {"loss": float(step)})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    cut = first + cut % (len(whole) - first + 1)
    path.write_bytes(whole[:cut] + garbage)
    standing = whole[:cut].count(b"\n") - 1
    with Journal(path, me) as journal:
        for step in range(5):
            assert journal.append_metrics(step, {"loss": float(step)}) == (step >= standing)
    assert read_metrics(path)["loss"] == {step: float(step) for step in range(5)}
    assert [record.seq for record in read_journal(path)] == list(range(6))


def test_damage_before_good_records_is_an_error_that_says_where(path: Path) -> None:
    with Journal(path, identity()) as journal:
        journal.append_metrics(0, {"a": 1.0})
        journal.append_metrics(1, {"a": 1.0})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"damaged\n" + lines[2])
    with pytest.raises(InputError, match=rf"record 1 is damaged \(byte {len(lines[0])}\)"):
        Journal(path)


def test_steps_repeated_after_a_restart_keep_their_first_value(path: Path) -> None:
    with Journal(path, identity()) as journal:
        for step in range(10):
            journal.append_metrics(step, {"train/loss": float(step), "val/psnr": 20.0 + step})
    with Journal(path) as journal:
        for step in range(5, 15):
            new = journal.append_metrics(step, {"train/loss": -1.0, "extra": 0.0})
            assert new == (1 if step < 10 else 2)
    loss = read_metrics(path)["train/loss"]
    assert loss == {step: float(step) if step < 10 else -1.0 for step in range(15)}


def test_points_of_a_curve_come_in_any_order_but_each_once(path: Path) -> None:
    with Journal(path, identity()) as journal:
        assert journal.append_metrics(36, {"curve/psnr": 20.0}) == 1
        assert journal.append_metrics(4, {"curve/psnr": 15.0}) == 1
    with Journal(path) as journal:
        assert journal.append_metrics(36, {"curve/psnr": 99.0}) == 0
        assert journal.append_metrics(9, {"curve/psnr": 17.0}) == 1
    assert read_metrics(path, "curve/") == {"curve/psnr": {9: 17.0, 4: 15.0, 36: 20.0}}


def test_a_parameter_stands_and_a_changed_one_becomes_a_tag(path: Path) -> None:
    with Journal(path, identity()) as journal:
        journal.append_params({"steps": 100, "seed": 0})
    with Journal(path) as journal:
        journal.append_params({"steps": 200, "seed": 0})
    later = list(read_journal(path))[2:]
    assert [(record.kind, record.data) for record in later] == [("tags", {"changed.steps": "200"})]


def test_tags_already_so_are_not_written_again(path: Path) -> None:
    with Journal(path, identity()) as journal:
        journal.append_tags({"a": "1"})
        size = path.stat().st_size
        journal.append_tags({"a": "1"})
        assert path.stat().st_size == size
        journal.append_tags({"a": "2"})
        assert path.stat().st_size > size


def test_only_one_process_writes_a_run(path: Path) -> None:
    with Journal(path, identity()), pytest.raises(JournalHeld, match="another process is writing this run"):
        Journal(path)
    Journal(path).close()


def _linger(release: multiprocessing.synchronize.Event) -> None:
    release.wait(30)


def test_a_forked_child_that_outlives_the_run_does_not_hold_its_journal(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    release = fork.Event()
    journal = Journal(path, identity())
    child = fork.Process(target=_linger, args=(release,))
    child.start()
    try:
        with pytest.raises(JournalHeld):
            Journal(path)  # the fork did not let go of the parent's lock either
        journal.close()
        deadline = time.monotonic() + 5
        while True:
            try:
                Journal(path).close()
                break
            except JournalHeld:  # until the child has run its first line
                assert time.monotonic() < deadline, "the child still holds the journal"
                time.sleep(0.01)
        assert child.is_alive()
    finally:
        release.set()
        child.join()


def test_another_run_cannot_take_over_a_journal(path: Path) -> None:
    Journal(path, identity("first")).close()
    with pytest.raises(InputError, match="belongs to run 'first'"):
        Journal(path, identity("second"))


def test_a_missing_journal_is_an_error_and_nothing_is_created(path: Path) -> None:
    with pytest.raises(InputError, match="no run is recorded there"):
        Journal(path)
    assert not path.parent.exists()


@pytest.mark.parametrize("key", ["", "loss\n", "a//b", "/a", "../a", "a/", "x" * 251, "50%", "."])
def test_a_name_that_mlflow_would_refuse_is_refused_at_once(path: Path, key: str) -> None:
    with Journal(path, identity()) as journal:
        size = path.stat().st_size
        with pytest.raises(InputError, match="metric name"):
            journal.append_metrics(0, {"good": 1.0, key: 1.0})
        with pytest.raises(InputError, match="parameter name"):
            journal.append_params({key: 1})
        assert path.stat().st_size == size


def test_a_full_disk_is_one_clear_line_and_leaves_no_half_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    room = iter([20])

    def full(file: int, data: bytes) -> int:
        for size in room:
            return write(file, data[:size])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(path, identity()) as journal:
        journal.append_metrics(0, {"a": 1.0})
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(InputError, match=rf"{JOURNAL_NAME}: the disk is full: free some space"):
                journal.append_metrics(1, {"a": 1.0 / 3})
        assert path.read_bytes() == before
        assert journal.append_metrics(1, {"a": 2.0}) == 1
    assert read_metrics(path)["a"] == {0: 1.0, 1: 2.0}


def test_a_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another directory"):
        Journal(tmp_path / "file" / JOURNAL_NAME, identity())


def test_an_artifact_from_elsewhere_is_kept_with_the_run(path: Path, tmp_path: Path) -> None:
    image = tmp_path / "tradeoff.png"
    image.write_bytes(b"image")
    with Journal(path, identity()) as journal:
        journal.append_artifact(image, "curve")
        (path.parent / "own.txt").write_text("own")
        journal.append_artifact(path.parent / "own.txt")
        with pytest.raises(InputError, match="no such file"):
            journal.append_artifact(tmp_path / "absent.png")
        with pytest.raises(InputError, match="relative path"):
            journal.append_artifact(image, "../curve")
    image.unlink()
    first, second = (record.data for record in list(read_journal(path))[1:])
    assert first == {"file": "artifacts/curve/tradeoff.png", "directory": "curve"}
    assert (path.parent / first["file"]).read_bytes() == b"image"
    assert second == {"file": "own.txt", "directory": ""}


def test_a_curve_is_recorded_over_kept_tokens_in_rising_order_with_its_axis_as_a_metric() -> None:
    rows = {64: {"psnr": 22.0}, 4: {"psnr": 15.0}}
    assert curve_records(rows) == [
        (4, {"curve/kept_tokens": 4, "curve/psnr": 15.0}),
        (64, {"curve/kept_tokens": 64, "curve/psnr": 22.0}),
    ]


def test_a_curve_of_before_gets_its_axis_once(path: Path) -> None:
    with Journal(path, identity("old")) as journal:
        for step, key in ((9, "curve/psnr"), (4, "curve/psnr"), (150, "cfg_curve/gfd_x"), (3, "train/total")):
            journal.append_metrics(step, {key: 1.0})
        journal.append_axes()
    before = path.stat().st_size
    with Journal(path) as journal:
        journal.append_axes()
    assert path.stat().st_size == before
    found = read_metrics(path)
    assert found["curve/kept_tokens"] == {4: 4.0, 9: 9.0}
    assert found["cfg_curve/guidance_scale"] == {150: 1.5}


def test_evaluating_again_makes_a_linked_run_and_never_a_second_point(path: Path) -> None:
    Journal(path, identity("train")).close()
    with open_for_curve(path.parent) as own:
        assert own.path == path
        append_curve(own, {4: {"psnr": 15.0}})
    with open_for_curve(path.parent) as again:
        assert again.path != path
        assert again.identity.kind == "evaluation"
        assert again.identity.evaluates == own.identity.uid
        assert again.identity.experiment == own.identity.experiment
        append_curve(again, {4: {"psnr": 15.5}})
    assert read_metrics(path, "curve/psnr") == {"curve/psnr": {4: 15.0}}
    assert read_metrics(again.path, "curve/psnr") == {"curve/psnr": {4: 15.5}}


def test_evaluating_again_without_a_curve_makes_a_linked_run_too(path: Path) -> None:
    Journal(path, identity("train")).close()
    with open_for_curve(path.parent) as own:
        assert own.path == path
        own.append_metrics(8, {"test/top1": 50.0})
    with open_for_curve(path.parent) as again:
        assert (again.path != path, again.identity.evaluates) == (True, own.identity.uid)


def test_the_curve_of_a_run_still_in_training_goes_to_a_linked_run(path: Path) -> None:
    with Journal(path, identity()) as training, open_for_curve(path.parent) as journal:
        assert journal.identity.evaluates == training.identity.uid


def test_a_recorder_without_a_store_keeps_everything_in_the_journal(tmp_path: Path) -> None:
    recorder = LocalRecorder(tmp_path, None, identity())
    recorder.params({"a": 1})
    recorder.metrics(0, {"train/total": 1.0})
    recorder.text("# Table", "curve/table.md")
    assert recorder.close("FINISHED") is None
    kinds = [record.kind for record in read_journal(tmp_path / JOURNAL_NAME)]
    assert kinds == ["run", "params", "metrics", "artifact", "status"]


def test_appending_is_cheap_beside_a_training_step(path: Path) -> None:
    values = {f"train/loss_{index}": 0.1 * index for index in range(30)}
    with Journal(path, identity()) as journal:
        started = time.process_time()
        for step in range(500):
            journal.append_metrics(step, values)
        seconds = (time.process_time() - started) / 500
    assert seconds < 2e-3


def test_links_lead_past_the_landing_page_to_the_charts() -> None:
    assert curve_link("http://host:5000/", "7") == (
        "http://host:5000/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    )
    assert curve_link("http://host:5000", "7", "abc").endswith(
        "/#/experiments/7/runs/abc/model-metrics?workflowType=machine_learning"
    )


def test_places_follow_arguments_then_the_environment_then_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_home({}) == tmp_path / "runs"
    plain = read_settings({})
    assert (plain.home, plain.tracking_uri, plain.storage) == (
        tmp_path / "runs",
        None,
        str(tmp_path / "runs" / "ray"),
    )
    environ = {"MERGEVQ_HOME": "/a", "MLFLOW_TRACKING_URI": "http://b", "MERGEVQ_STORAGE": "s3://c"}
    moved = read_settings(environ)
    assert (moved.home, moved.tracking_uri, moved.storage) == (Path("/a"), "http://b", "s3://c")
    assert read_settings(environ, home=Path("here"), storage="/d").home == tmp_path / "here"
    assert read_settings(environ, storage="/d").storage == "/d"
    assert not (tmp_path / "runs").exists()


def test_the_system_sample_sees_the_work_and_memory_of_this_process() -> None:
    sampler = SystemSampler()
    ballast = bytearray(os.urandom(1) * (64 << 20))
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        sum(range(1000))
    values = sampler.sample()
    assert values["system/memory_gib"] > len(ballast) / 2**30
    assert 0.05 < values["system/cpu_cores"] < 64


def test_a_system_sample_is_of_all_processes_below_this_one_whichever_thread_started_them() -> None:
    started: list[subprocess.Popen[bytes]] = []
    thread = Thread(target=lambda: started.append(subprocess.Popen(["sh", "-c", "sleep 60 & wait"])))
    thread.start()
    thread.join()
    try:
        us, shell = psutil.Process(), psutil.Process(started[0].pid)
        deadline = time.monotonic() + 60
        while not (below := shell.children()):  # its `sleep`; other tests' processes may stand beside it
            assert time.monotonic() < deadline
        found = {process.pid for process in descendants(us)}
        assert {shell.pid, below[0].pid} <= found
        assert found == {process.pid for process in us.children(recursive=True)}
    finally:
        for process in reversed(psutil.Process(started[0].pid).children()):
            process.kill()
        started[0].kill()
        started[0].wait()
