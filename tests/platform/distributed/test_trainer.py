"""Training on a real local Ray cluster: two workers, a killed worker, a stopped run, and MLflow's history of it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from family import descendants
from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.distributed import trainer
from mergevq_platform.distributed.urgency import PATIENCE_SECONDS, Urgency
from mergevq_platform.distributed.yielding import job_of, leases
from mergevq_platform.recipe import resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.tracking.listing import find_run
from mergevq_platform.tracking.records import YIELDED_TAG
from mergevq_platform.tracking.store import Store
from raynodes import journal_of, same, state, step_of, wait_until
from urgent_work import urgent_work

pytestmark = pytest.mark.ray
STEPS = 30


@pytest.fixture
def two_workers(small_recipe: dict[str, Any]) -> dict[str, Any]:
    small_recipe["cluster"] = {"workers": 2, "device": "cpu"}
    return small_recipe | {"steps": STEPS, "checkpoint_every": 10}


@pytest.fixture(scope="module")
def finished() -> dict[str, Any]:
    """What tests share of finished runs, by the run's name: each is trained once, for the first that asks."""
    return {}


@pytest.fixture
def undisturbed(two_workers: dict[str, Any], ray_home: Path, finished: dict[str, Any]) -> dict[str, Any]:
    """The outcome, state and journal of two workers that nothing disturbed."""
    if "undisturbed" not in finished:
        outcome = trainer.train(resolve(two_workers), home=ray_home, name="undisturbed")
        kept = {"outcome": outcome, "state": state(outcome.run), "journal": journal_of(outcome.run)}
        finished["undisturbed"] = kept
    return finished["undisturbed"]


@dataclass(frozen=True)
class LateRun:
    """A finished run that was told to stop in its last step, and whose experiment was deleted until it had ended."""

    outcome: trainer.Outcome
    measured: list[int]  # the steps that were evaluated
    said: str  # on stderr
    synced: int  # the exit status of `mergevq sync` after the experiment was restored


@pytest.fixture
def late(small_recipe: dict[str, Any], ray_home: Path, finished: dict[str, Any]) -> LateRun:
    """A run by epochs of one worker; its only checkpoint is that of the last step."""
    if "late" not in finished:
        client = Store.at(ray_home).client()
        gone = client.create_experiment("gone", artifact_location=(ray_home / "gone").as_uri())
        client.delete_experiment(gone)
        tree = {key: value for key, value in small_recipe.items() if key != "steps"}
        tree |= {"epochs": 8 * 8 / 192, "checkpoint_every": 100, "experiment": "gone"}
        measured: list[int] = []

        def watch(checkpoint: str, step: int, recorder: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        with contextlib.redirect_stderr(io.StringIO()) as said:
            outcome = trainer.train(
                resolve(tree),
                home=ray_home,
                name="late",
                watch=watch,
                after=lambda done, _: measured.append(done.step),
            )
        client.restore_experiment(gone)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MERGEVQ_HOME", str(ray_home))
            synced = cli.run(["sync", "late"])
        finished["late"] = LateRun(outcome, measured, said.getvalue(), synced)
    return finished["late"]


def test_two_workers_train_and_every_step_reaches_mlflow_once(
    ray_home: Path, undisturbed: dict[str, Any]
) -> None:
    outcome, journal = undisturbed["outcome"], undisturbed["journal"]
    assert (outcome.step, outcome.stopped) == (STEPS, False)
    assert sorted(journal["train/total"]) == list(range(1, STEPS + 1))

    client = Store.at(ray_home).client()
    experiment = client.get_experiment_by_name("mergevq")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`mergevq.run` = 'undisturbed'")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/total")
    assert sorted(point.step for point in history) == list(range(1, STEPS + 1))
    assert run.data.params["task.model.encoder.depth"] == "2"
    assert len(run.data.tags["mergevq.data_fingerprint"]) == 64
    assert run.data.metrics["system/images_per_second"] > 0
    assert run.data.metrics["system/memory_gib"] > 0
    assert run.data.params["merge_ratios"] == "[0.75, 0.4375, 0.0]"


@dataclass(frozen=True)
class DisturbedRun:
    """Two workers' run that was stopped in its first steps, resumed, and lost a worker after step 11."""

    stopped: trainer.Outcome
    resumed: trainer.Outcome
    killed: list[int]  # processes


@pytest.fixture
def disturbed(two_workers: dict[str, Any], ray_home: Path, finished: dict[str, Any]) -> DisturbedRun:
    if "disturbed" not in finished:
        run = Run("disturbed", ray_home, str(ray_home / "ray"))
        killed: list[int] = []

        def kill_one_worker() -> None:
            last = descendants("RayTrainWorker")[-1]
            last.kill()
            killed.append(last.pid)

        with once_at_step(run, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            stopped = trainer.train(resolve(two_workers), home=ray_home, name=run.name)
        with once_at_step(run, max(stopped.step + 1, 12), kill_one_worker):
            resumed = trainer.train(None, home=ray_home, resume=run.name)
        finished["disturbed"] = DisturbedRun(stopped, resumed, killed)
    return finished["disturbed"]


@contextlib.contextmanager
def once_at_step(run: Run, step: int, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in another thread as soon as the run's journal holds the step, at most once, and only within the context."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.02):
            if step_of(run) >= step:
                return act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_killed_worker_in_mid_run_changes_no_weight_and_no_metric(
    disturbed: DisturbedRun, undisturbed: dict[str, Any]
) -> None:
    assert disturbed.killed, "the run ended before a worker could be killed"
    assert same(state(disturbed.resumed.run), undisturbed["state"])
    assert journal_of(disturbed.resumed.run) == undisturbed["journal"]


def test_a_signal_in_the_last_step_of_a_run_by_epochs_comes_too_late_to_stop_it(
    ray_home: Path, late: LateRun
) -> None:
    assert (late.outcome.step, late.outcome.stopped, late.measured) == (8, False, [8])
    assert find_run(Store.at(ray_home), "late").status == "FINISHED"


def test_a_stopped_run_resumes_to_the_same_weights(
    disturbed: DisturbedRun, undisturbed: dict[str, Any]
) -> None:
    assert disturbed.stopped.stopped
    assert 3 <= disturbed.stopped.step < STEPS
    assert (disturbed.resumed.step, disturbed.resumed.stopped) == (STEPS, False)
    assert same(state(disturbed.resumed.run), undisturbed["state"])
    assert journal_of(disturbed.resumed.run) == undisturbed["journal"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3-compatible server on loopback, as a storage URI."""
    import pyarrow.fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    there = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, path = pyarrow.fs.FileSystem.from_uri(f"s3://key:secret@bucket?{there}")
    filesystem.create_dir(path)
    yield f"s3://key:secret@bucket/runs?{there}"
    server.stop()


@pytest.mark.long
def test_a_run_on_object_storage_is_resumed_from_another_machine(
    small_recipe: dict[str, Any], ray_home: Path, tmp_path: Path, bucket: str
) -> None:
    small_recipe["cluster"] = {"workers": 1, "device": "cpu"}
    whole = trainer.train(resolve(small_recipe), home=ray_home, name="whole")
    half = trainer.train(resolve(small_recipe | {"steps": 4}), home=ray_home, storage=bucket, name="remote")
    assert half.step == 4
    assert half.run.newest_checkpoint().startswith("s3://")
    # The first machine's disk is gone: recipe and journal come from the bucket.
    second = trainer.train(None, home=tmp_path, storage=bucket, resume="remote", overrides=("steps=8",))
    assert second.step == 8
    with checkpoints.newest(second.run.location) as directory:
        resumed = torch.load(directory / "resume.pt", weights_only=True)
    assert same(resumed, state(whole.run))
    assert journal_of(second.run) == journal_of(whole.run)


def test_a_training_that_yields_ends_bit_for_bit_as_an_undisturbed_one(
    two_workers: dict[str, Any],
    ray_home: Path,
    undisturbed: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    two_workers["cluster"] |= {"yields": True, "max_failures": 0}  # to yield is no failure
    run, store, seen = Run("yielding", ray_home, str(ray_home / "ray")), Store.at(ray_home), list[str]()

    def looked() -> bool:
        seen.append(find_run(store, run.name).state)
        return seen[-1] == "yielded"

    def starts() -> bool:
        return (run.directory / "recipe.yaml").is_file()

    # The job asks early, and takes its CPUs late: a training of thirty steps takes a second.
    with urgent_work(starts, looked, cpus=2.0, begin=lambda: step_of(run) >= 1) as urgent:
        outcome = trainer.train(resolve(two_workers), home=ray_home, name=run.name)
    assert urgent.error is None
    assert urgent.held
    assert seen[-1] == "yielded"
    assert (outcome.step, outcome.stopped) == (STEPS, False)
    assert same(state(run), undisturbed["state"])
    assert journal_of(run) == undisturbed["journal"]
    said = capsys.readouterr().err
    assert "to the urgent job urgent: goes on when that has ended" in said
    assert "warning: goes on after step" in said
    assert find_run(store, run.name).tags[YIELDED_TAG].endswith(", to urgent; went on")


def test_an_urgent_run_says_when_nothing_yields_and_leaves_no_lease(
    small_recipe: dict[str, Any], ray_home: Path
) -> None:
    said: list[str] = []
    with Urgency("urgent", {"CPU": 64.0}, say=said.append) as urgency:
        urgency._began -= PATIENCE_SECONDS
        wait_until(lambda: said, 60, "a line")
        assert [job_of(lease) for lease in leases()] == ["urgent"]
    assert said == ["nothing here yields: this job waits for work that is not ours or does not yield"]
    wait_until(lambda: not leases(), 60, "no lease")


def test_a_name_that_is_taken_is_refused(two_workers: dict[str, Any], ray_home: Path) -> None:
    Run.new("taken", home=ray_home).directory.mkdir(parents=True)
    with pytest.raises(InputError, match=r"run 'taken' exists already.*--resume taken"):
        trainer.train(resolve(two_workers), home=ray_home, name="taken")


def test_more_workers_than_the_cluster_can_hold_is_said_at_once(
    small_recipe: dict[str, Any], ray_home: Path
) -> None:
    small_recipe |= {"global_batch": 64, "micro_batch": 1, "cluster": {"workers": 64, "device": "cpu"}}
    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"asks for 64 workers of 1 CPU each, but this cluster has room for \d+"
    ):
        trainer.train(resolve(small_recipe), home=ray_home, name="too-many")
    assert time.monotonic() - began < 20
    assert not (ray_home / "ray" / "too-many").exists()


def test_the_checkpoint_is_a_tokenizer(ray_home: Path, undisturbed: dict[str, Any]) -> None:
    import mergevq

    with checkpoints.newest(str(ray_home / "ray" / "undisturbed")) as directory:
        tokenizer = mergevq.load(directory)
    assert tokenizer.encode(torch.zeros(1, 3, 16, 16), keep=5).indices.shape == (1, 5)


def test_a_run_that_ray_refuses_at_its_start_is_recorded_as_failed(
    small_recipe: dict[str, Any], ray_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the storage has just gone")

    monkeypatch.setattr(trainer, "TorchTrainer", refuse)
    with pytest.raises(OSError, match="just gone"):
        trainer.train(resolve(small_recipe), home=ray_home, name="refused")
    assert find_run(Store.at(ray_home), "refused").status == "FAILED"


def test_a_run_that_did_not_reach_mlflow_says_so_at_its_first_refusal_and_at_its_end(
    ray_home: Path, late: LateRun
) -> None:
    assert late.outcome.undelivered is not None
    assert "experiment 'gone' was deleted" in late.outcome.undelivered
    assert late.outcome.undelivered.endswith("mergevq sync late")
    assert "warning: not in MLflow yet" in late.said
    assert late.synced == 0
    assert find_run(Store.at(ray_home), "late").status == "FINISHED"
