"""Verbs as jobs of a cluster that has never heard of us, from a folder that is not a checkout."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from mergevq_platform.operations.submission import ClusterClient, follow, list_jobs, require
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.tracking.listing import find_run
from mergevq_platform.tracking.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh(tmp_path: Path, small_recipe: dict[str, Any]) -> Path:
    """A folder with a recipe and nothing else."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    (folder / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    return folder


@pytest.fixture
def signed_in(bare_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterClient:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(bare_cluster.token))
    return ClusterClient(bare_cluster.address, home=tmp_path)


def job_of(text: str) -> str:
    found = re.search(r"^job (\S+): mergevq", text, re.MULTILINE)
    assert found, text
    return found[1]


def weights(run: Run) -> dict[str, torch.Tensor]:
    state = torch.load(Path(run.newest_checkpoint()) / "resume.pt", weights_only=True)
    return {f"{phase}.{k}": v for phase, tree in state["training"].items() for k, v in flat(tree)}


def flat(tree: Any, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        return [(prefix, tree)]
    items = tree.items() if isinstance(tree, dict) else ()
    return [pair for key, value in items for pair in flat(value, f"{prefix}.{key}")]


def wait_for(condition: Any, seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what} has not happened within {seconds} s")


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_is_submitted_from_a_fresh_folder(
    bare_cluster: Any, fresh: Path, signed_in: ClusterClient
) -> None:
    answer = bare_cluster.mergevq(
        *("submit", "--home", str(bare_cluster.home), "--name", "first"),
        *("--", "train", "small.yaml", "steps=4", "--no-evaluation"),
        cwd=fresh,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"uploading .*[KM]iB: mergevq itself \(\d+ files\), small\.yaml", answer.stdout)
    assert "step 4/4" in answer.stdout  # the job's log was followed to its end
    run = Run.find("first", home=bare_cluster.home)
    assert checkpoints.step_of(run.newest_checkpoint()) == 4
    assert find_run(Store.at(bare_cluster.home), "first").status == "FINISHED"
    (job,) = list_jobs(signed_in)  # the question to the cluster has left no job behind
    assert (job.submission_id, job.status) == ("first", "SUCCEEDED")
    metadata = job.metadata or {}
    assert (metadata["mergevq.verb"], metadata["mergevq.recipe"]) == ("train", "small")
    assert not list(fresh.glob("runs/ray/*"))
    token = bare_cluster.token.read_text()
    assert token not in answer.stdout + answer.stderr + signed_in.get_job_info("first").model_dump_json()


@pytest.mark.cluster
def test_a_job_that_is_stopped_writes_a_checkpoint_and_goes_on(
    bare_cluster: Any, fresh: Path, signed_in: ClusterClient
) -> None:
    started = bare_cluster.mergevq(
        *("submit", "--no-follow", "--home", str(bare_cluster.home), "--name", "long"),
        *("--", "train", "small.yaml", "steps=100000", "checkpoint_every=100000", "--no-evaluation"),
        cwd=fresh,
    )
    assert started.returncode == 0, started.stderr
    wait_for(lambda: re.search(r"step \d+/100000", signed_in.get_job_logs("long")), 240, "a step")
    stopped = bare_cluster.mergevq("jobs", "stop", "long", cwd=fresh)
    assert (stopped.returncode, stopped.stdout.splitlines()[-1]) == (0, "job long: stopped"), stopped.stderr
    run = Run.find("long", home=bare_cluster.home)
    step = checkpoints.step_of(run.newest_checkpoint())
    assert 0 < step < 100000
    assert find_run(Store.at(bare_cluster.home), "long").status == "KILLED"
    logs = bare_cluster.mergevq("jobs", "logs", "long", cwd=fresh)
    assert logs.returncode == 130
    assert "go on with: mergevq train --resume long" in logs.stdout

    resumed = bare_cluster.mergevq(
        *("submit", "--home", str(bare_cluster.home), "--", "train", "--resume", "long"),
        *(f"steps={step + 2}", "--no-evaluation"),
        cwd=fresh,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert checkpoints.step_of(run.newest_checkpoint()) == step + 2


@pytest.mark.cluster
def test_an_urgent_job_is_given_room_by_a_sweep_that_goes_on_after_it(
    bare_cluster: Any, fresh: Path, signed_in: ClusterClient
) -> None:
    sweep = bare_cluster.mergevq(
        *("submit", "--no-follow", "--home", str(bare_cluster.home), "--name", "busy"),
        *("--", "sweep", "small.yaml", "--name", "busy", "--over", "task.losses.entropy.weight=0.01,0.02"),
        *("steps=400", "cluster.workers=1", "evaluation.keeps=[4]", "evaluation.untrained_baseline=false"),
        cwd=fresh,
    )
    assert sweep.returncode == 0, sweep.stderr
    trials = [
        Run(f"busy-{number:03d}", bare_cluster.home, str(bare_cluster.home / "ray")) for number in range(2)
    ]
    wait_for(
        lambda: all((run.directory / "journal.jsonl").is_file() for run in trials), 240, "both trials train"
    )
    urgent = bare_cluster.mergevq(
        *("submit", "--urgent", "--home", str(bare_cluster.home), "--name", "now"),
        *("--", "train", "small.yaml", "steps=4", "cluster.workers=1", "--no-evaluation"),
        cwd=fresh,
    )
    assert urgent.returncode == 0, urgent.stdout + urgent.stderr
    assert re.search(r"urgent: busy-00\d has yielded, with a checkpoint", urgent.stdout), urgent.stdout
    assert checkpoints.step_of(Run.find("now", home=bare_cluster.home).newest_checkpoint()) == 4
    wait_for(lambda: signed_in.get_job_info("busy").status in ("SUCCEEDED", "FAILED"), 400, "the sweep's end")
    logs = signed_in.get_job_logs("busy")
    assert signed_in.get_job_info("busy").status == "SUCCEEDED", logs
    assert "yielded to now" in logs
    assert all(find_run(Store.at(bare_cluster.home), run.name).status == "FINISHED" for run in trials)


@pytest.mark.cluster
def test_the_exit_status_is_the_jobs(bare_cluster: Any, fresh: Path) -> None:
    wrong = bare_cluster.mergevq(
        *("submit", "--home", str(bare_cluster.home), "--", "train", "small.yaml", "data.path=/nowhere"),
        cwd=fresh,
    )
    assert wrong.returncode == 2  # the verb's own status for what the user can fix
    assert "/nowhere" in wrong.stdout


@pytest.mark.cluster
def test_plain_ray_job_submit_works_as_documented(
    bare_cluster: Any, tmp_path: Path, small_recipe: dict
) -> None:
    checkout = tmp_path / "checkout"
    ignore = shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, checkout, ignore=ignore)
    (checkout / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    environment = {"PYTHONPATH": "platform", "MERGEVQ_HOME": str(bare_cluster.home)}
    answer = subprocess.run(
        [
            *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "job", "submit"),
            *("--address", bare_cluster.address, "--working-dir", "."),
            *("--runtime-env-json", json.dumps({"env_vars": environment})),
            *("--", "python", "jobs/train.py", "small.yaml", "steps=2", "--name", "plain", "--no-evaluation"),
        ],
        cwd=checkout,
        env=bare_cluster.environment(RAY_AUTH_MODE="token"),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert Run.find("plain", home=bare_cluster.home).newest_checkpoint()


class FragileLink:
    """A relay to the dashboard that can be cut: every connection through it is closed."""

    def __init__(self, port: int) -> None:
        self.target, self.open = port, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            self.open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def cut(self) -> None:
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open = []


@pytest.mark.cluster
def test_following_survives_a_cut_connection_and_prints_every_line_once(
    bare_cluster: Any, signed_in: ClusterClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import time\nfor i in range(60): print('line', i, flush=True); time.sleep(0.15)"
    job = signed_in.submit_job(entrypoint=f'python -c "{script}"')
    link = FragileLink(int(bare_cluster.address.rpartition(":")[2]))
    through = ClusterClient(f"http://127.0.0.1:{link.port}", home=tmp_path)
    pieces: list[str] = []
    cuts = 0

    def cutting() -> None:
        nonlocal cuts
        for line in (10, 30):
            wait_for(lambda n=line: f"line {n}" in "".join(pieces), 60, f"line {line}")
            link.cut()
            cuts += 1

    cutter = threading.Thread(target=cutting)
    cutter.start()
    assert follow(through, job, say=pieces.append) == 0
    cutter.join()
    assert cuts == 2
    assert "connecting again" in capsys.readouterr().err
    lines = [line for line in "".join(pieces).splitlines() if line.startswith("line")]
    assert lines == [f"line {i}" for i in range(60)]


@pytest.mark.cluster
def test_a_job_that_cannot_start_says_why(
    bare_cluster: Any, fresh: Path, signed_in: ClusterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = bare_cluster.mergevq(
        *("submit", "--no-follow", "--home", str(bare_cluster.home), "--cpus", "64", "--name", "greedy"),
        *("--", "train", "small.yaml"),
        cwd=fresh,
    )
    assert answer.returncode == 0, answer.stderr
    following = subprocess.Popen(
        [sys.executable, "-m", "mergevq_platform.cli", "jobs", "logs", "greedy"],
        cwd=fresh,
        env=bare_cluster.environment(),
        stderr=subprocess.PIPE,
        text=True,
        # Where the suite runs in the background of a script, its children would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert following.stderr is not None
    said = following.stderr.readline()
    assert "asks for 64 CPU, and no node has that (nodes: 2 CPU" in said
    following.send_signal(signal.SIGINT)
    assert following.wait(30) == 130
    assert not require(signed_in, "greedy").status.is_terminal()  # Ctrl-C leaves the job
    assert bare_cluster.mergevq("jobs", "stop", "greedy", cwd=fresh).returncode == 0


@pytest.mark.cluster
def test_an_installed_package_submits_as_a_checkout_does(
    bare_cluster: Any, fresh: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "site-packages"
    shutil.copytree(ROOT / "mergevq", installed / "mergevq")
    shutil.copytree(ROOT / "platform" / "mergevq_platform", installed / "mergevq_platform")
    shutil.copytree(ROOT / "jobs" / "recipes", installed / "mergevq_platform" / "recipes")
    shutil.copy(ROOT / "sweeps" / "smoke.py", fresh / "smoke.py")
    answer = bare_cluster.mergevq(
        *("submit", "--home", str(bare_cluster.home), "--", "recipes", "shapes_teacher"),
        cwd=fresh,
        PYTHONPATH=str(installed),
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "name: shapes_teacher" in answer.stdout


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_a_run_whose_node_is_killed_ends_with_the_weights_of_the_undisturbed_one(
    two_nodes: Any, fresh: Path
) -> None:
    submit = ("submit", "--home", str(two_nodes.home))
    train = ("--", "train", "small.yaml", "steps=24", "checkpoint_every=4", "--no-evaluation")
    undisturbed = two_nodes.mergevq(*submit, "--name", "undisturbed", *train, cwd=fresh, timeout=800)
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr

    disturbed = subprocess.Popen(
        [sys.executable, "-m", "mergevq_platform.cli", *submit, "--name", "disturbed", *train],
        cwd=fresh,
        env=two_nodes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = Run("disturbed", two_nodes.home, str(two_nodes.home / "ray"))
    wait_for(lambda: len(checkpoints.listed(run.location)) >= 1, 240, "a checkpoint")
    two_nodes.kill(node_that_trains(two_nodes))
    output, _ = disturbed.communicate(timeout=600)
    assert disturbed.returncode == 0, output
    calm, hit = weights(Run("undisturbed", two_nodes.home, run.storage)), weights(run)
    assert calm.keys() == hit.keys()
    assert all(torch.equal(calm[name], hit[name]) for name in calm)


def node_that_trains(cluster: Any) -> subprocess.Popen:
    """The node that runs the training worker: the one whose processes include a Ray Train worker."""
    for process in cluster.processes[1:]:
        for child in psutil.Process(process.pid).children(recursive=True):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                return process
    raise AssertionError("no node trains")
