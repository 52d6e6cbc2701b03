"""One test per fault: what the run does about it, how soon, and that its end is that of the undisturbed run. `make faults`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import pytest

import undisturbed
from disturbance import Disturbed, delivered, level
from mergevq_platform.tracking.records import read_metrics
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import UiServer
from raynodes import (
    Nodes,
    free_port,
    journal_of,
    largest_difference,
    newest_checkpoint,
    same,
    state,
    wait_until,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

Start = Callable[..., Disturbed]


def worker(nodes: Nodes, index: int = -1) -> psutil.Process:
    return [process for node in nodes.nodes for process in node.workers()][index]


def damage(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "resume.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "resume.pt").write_bytes(content)


def test_worker_killed(disturb: Start, nodes: Nodes, expected: dict[str, Any], report: Any) -> None:
    run = disturb("worker-killed")
    run.reach()
    run.strike(worker(nodes).kill)
    run.finish()
    seen = run.noticed("failed")
    report("worker SIGKILL", seen, run.again(seen), "restarted from the last checkpoint", run.check(expected))


def test_node_killed_with_a_spare(
    disturb: Start, nodes: Nodes, expected: dict[str, Any], report: Any
) -> None:
    nodes.add()
    run = disturb("node-spare")
    run.reach()
    run.strike(nodes.busy()[-1].kill)
    run.finish()
    seen = run.noticed("failed")
    report(
        "node SIGKILL, a spare node", seen, run.again(seen), "moved to the spare node", run.check(expected)
    )


def test_node_killed_without_a_spare(
    disturb: Start, nodes: Nodes, expected: dict[str, Any], report: Any
) -> None:
    run = disturb("node-alone")
    run.reach()
    run.strike(nodes.busy()[-1].kill)
    wait_until(
        lambda: run.driver.said("the run waits for nodes: it needs 2 workers"), 300, "the reason for waiting"
    )
    nodes.add()
    run.finish()
    seen = run.noticed("failed")
    outcome = f"said what it waits for after {run.noticed('waits for nodes'):.0f} s; went on when a node came"
    report("node SIGKILL, no spare", seen, run.again(seen), outcome, run.check(expected))


def test_driver_killed(disturb: Start, expected: dict[str, Any], report: Any) -> None:
    run = disturb("driver-killed")
    run.reach()
    run.strike(run.driver.kill)
    wait_until(lambda: run.nodes.left_behind() == ([], []), 120, "the cluster is clean again")
    clean = time.monotonic() - run.struck_at
    run.start("--resume", "driver-killed")
    run.finish()
    outcome = f"cluster clean after {clean:.0f} s; `--resume` goes on"
    report("driver SIGKILL", None, run.again(clean), outcome, run.check(expected))


def test_worker_that_hangs(
    disturb: Start, nodes: Nodes, tree: dict[str, Any], expected: dict[str, Any], report: Any
) -> None:
    tree["cluster"]["hang_timeout_seconds"] = 10
    run = disturb("worker-hangs", tree=tree)
    run.reach()
    stopped = worker(nodes)
    run.strike(lambda: stopped.send_signal(signal.SIGSTOP))
    output = run.finish()
    assert f"(process {stopped.pid}) has been silent for" in output
    assert not stopped.is_running()
    seen = run.noticed("has been silent")
    outcome = "named, ended and restarted (time-out set to 10 s; 300 by default)"
    report("worker SIGSTOP", seen, run.again(seen), outcome, run.check(expected))


def test_worker_out_of_memory(
    disturb: Start, nodes: Nodes, tree: dict[str, Any], expected: dict[str, Any], report: Any
) -> None:
    def starve() -> None:
        for node in nodes.nodes:
            for process in node.workers():
                process.rlimit(psutil.RLIMIT_DATA, (1024**2,) * 2)  # what it has stays; no more

    run = disturb("memory")
    run.reach()
    run.strike(starve)
    run.finish()
    seen = run.noticed("failed")
    weights = run.check(expected)

    tree["cluster"]["max_failures"] = 0
    final = disturb("memory-final", tree=tree)
    final.reach()
    final.strike(starve)
    assert final.driver.finish() == 1
    final.close()
    (line,) = [line for _, line in final.driver.lines if line.startswith("mergevq: ")]
    # Where a thread of Ray's asks for memory before the training does, the process ends without a word.
    assert "out of memory" in line or "was it the machine's memory?" in line
    assert "lower micro_batch" in line
    report(
        "worker out of memory (rlimit)",
        seen,
        run.again(seen),
        "restarted; without restarts left, one line: lower micro_batch",
        weights,
    )


def test_newest_checkpoint_corrupt(
    disturb: Start, nodes: Nodes, expected: dict[str, Any], report: Any
) -> None:
    run = disturb("corrupt")
    run.reach(22)

    def fault() -> None:
        for node in nodes.nodes:
            for process in node.workers():
                process.suspend()  # no newer one may come
        damage(newest_checkpoint(run.run))
        worker(nodes).kill()
        for node in nodes.nodes:
            for process in node.workers():
                process.resume()

    run.strike(fault)
    output = run.finish()
    assert "resume.pt is corrupt" in output
    assert "falling back to" in output
    seen = run.noticed("failed")
    outcome = "said so; restarted from the one before"
    report("newest checkpoint corrupt, worker SIGKILL", seen, run.again(seen), outcome, run.check(expected))


def test_newest_checkpoint_corrupt_at_resume(disturb: Start, expected: dict[str, Any], report: Any) -> None:
    run = disturb("corrupt-resume")
    run.reach(22)
    run.strike(run.driver.kill)
    damage(newest_checkpoint(run.run))
    run.start("--resume", "corrupt-resume")
    assert "falling back to" in run.finish()
    report(
        "newest checkpoint corrupt at `--resume`",
        None,
        run.again(1),
        "said so; resumed from the one before",
        run.check(expected),
    )


def test_storage_gone_for_a_minute(
    disturb: Start, expected: dict[str, Any], tmp_path: Path, report: Any
) -> None:
    storage = tmp_path / "storage"
    run = disturb("storage-gone", storage=storage)
    run.reach()
    run.strike(lambda: storage.rename(tmp_path / "away"))
    wait_until(lambda: run.driver.said("the checkpoint cannot be saved"), 200, "the warning")
    time.sleep(max(0.0, run.struck_at + 60 - time.monotonic()))
    assert not storage.exists(), "nothing may be written where the storage was"
    (tmp_path / "away").rename(storage)
    run.finish()
    assert "failed" not in run.driver.output
    seen = run.noticed("the checkpoint cannot be saved")
    report(
        "storage gone for a minute",
        seen,
        run.again(60),
        "training waited, nothing was lost, no restart",
        run.check(expected),
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("only root may mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_storage_full(
    disturb: Start, tree: dict[str, Any], expected: dict[str, Any], small_disk: Path, report: Any
) -> None:
    tree["cluster"]["storage_timeout_seconds"] = 5
    run = disturb("storage-full", storage=small_disk, tree=tree)
    run.reach()
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(4096))
            except OSError:
                return

    run.strike(fill)
    assert run.driver.finish() == 2, run.driver.output
    (line,) = [line for _, line in run.driver.lines if line.startswith("mergevq: ")]
    assert "step 20: the checkpoint cannot be saved in" in line
    assert "no space left on device" in line.lower()
    assert str(small_disk) in line
    assert all(
        (path / "checkpoint.json").is_file() for path in (small_disk / "storage-full").glob("checkpoint_*")
    )
    seen = run.noticed("the checkpoint cannot be saved")
    ballast.unlink()
    gone = time.monotonic() - run.struck_at
    run.start("--resume", "storage-full")
    run.finish()
    outcome = "one line names the storage, exit 2 (after 5 s here; 600 by default); `--resume` goes on"
    report("storage full (tmpfs)", seen, run.again(gone), outcome, run.check(expected))


def test_tracking_server_killed_for_the_middle_of_a_run(
    disturb: Start, expected: dict[str, Any], tmp_path: Path, report: Any
) -> None:
    store, port = Store.at(tmp_path / "server"), free_port()
    server = UiServer(store, port=port)
    run = disturb("tracking", environment={"MLFLOW_TRACKING_URI": server.url})
    try:
        run.reach()
        run.strike(server.close)
        wait_until(lambda: run.seen[-1][1] >= 45, 300, "training goes on")
        server = UiServer(store, port=port)
        run.finish()
        command = [sys.executable, "-m", "mergevq_platform.cli", "sync", "tracking"]
        environment = run.nodes.environment | {
            "MERGEVQ_HOME": str(tmp_path),
            "MLFLOW_TRACKING_URI": server.url,
        }
        subprocess.run(command, env=environment, check=True, timeout=300)
        delivered(tmp_path, "tracking", expected["journal"], server.url)
    finally:
        server.close()
    assert same(state(run.run), expected["state"])
    report(
        "MLflow server killed from step 12 to 45",
        None,
        None,
        "training did not stop; every step is there once",
        "bit for bit",
    )


def test_node_about_to_be_taken_away(
    disturb: Start, nodes: Nodes, expected: dict[str, Any], report: Any
) -> None:
    nodes.add()
    run = disturb("preempted")
    run.reach()
    victim = nodes.busy()[-1]
    identity = nodes.node_id(victim)

    def notice() -> None:
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "drain-node",
            "--address",
            nodes.address,
            "--node-id",
            identity,
        ]
        command += [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            "15",
        ]
        subprocess.run(command, env=nodes.environment, check=True, timeout=120)

    run.strike(notice)
    wait_until(lambda: run.driver.said("about to lose their node"), 200, "the notice")
    saved = newest_checkpoint(run.run)
    time.sleep(max(0.0, run.struck_at + 15 - time.monotonic()))
    victim.kill()  # as the cloud does at the deadline
    output = run.finish()
    assert "about to lose their node: saving a checkpoint now" in output
    report(
        "preemption notice (15 s)",
        run.noticed("about to lose"),
        run.again(run.noticed("about to lose")),
        f"saved at once ({saved.name[-2:]}); moved to the spare node",
        run.check(expected),
    )


def test_shrink_and_grow(
    disturb: Start, nodes: Nodes, tree: dict[str, Any], tmp_path: Path, report: Any
) -> None:
    level(nodes, 3)
    tree["cluster"] |= {"workers": 3, "min_workers": 1, "resize_seconds": 3}
    tree["task"]["losses"]["adversarial"]["discriminator"]["norm"] = "group"
    tree |= {"steps": 150, "global_batch": 10, "micro_batch": 4, "checkpoint_every": 20}
    expected = undisturbed.train(tree, tmp_path / "three", world_size=3)
    run = disturb("elastic", tree=tree)
    run.reach(22)

    def sizes() -> list[int]:
        metrics = read_metrics(run.run.directory / "journal.jsonl").get("system/workers", {})
        return [int(size) for _, size in sorted(metrics.items())]

    run.strike(nodes.busy()[-1].kill)
    wait_until(lambda: sizes()[-1] == 2, 300, "two workers")
    nodes.add()
    wait_until(lambda: sizes()[-1] == 3, 300, "three workers again")
    run.finish()
    seen = run.noticed("failed")
    journal = journal_of(run.run)
    assert journal.keys() == expected["journal"].keys()
    assert journal["train/kept_tokens"] == expected["journal"]["train/kept_tokens"]
    assert sorted(journal["train/total"]) == list(range(1, 151))
    # Other sizes round otherwise, and once a rounded bit of a code is another image, steps agree only on average.
    mine, theirs = (points["train/reconstruction"] for points in (journal, expected["journal"]))
    fewer = next(step for step, size in enumerate(sizes(), 1) if size == 2)
    for step in range(1, fewer + 5):
        assert mine[step] == pytest.approx(theirs[step], rel=1e-2), step
    assert fmean(mine.values()) == pytest.approx(fmean(theirs.values()), rel=0.05)
    delivered(tmp_path, "elastic", journal)
    wait_until(lambda: nodes.left_behind() == ([], []), 60, "nothing left behind")
    difference = largest_difference(state(run.run)["training"], expected["state"]["training"])
    report(
        "node SIGKILL, 3 → 2 → 3 workers (`min_workers`)",
        seen,
        run.again(seen),
        "shrank, went on, grew when the node came back",
        f"every step on the same images; largest difference {difference:.0e}",
    )
