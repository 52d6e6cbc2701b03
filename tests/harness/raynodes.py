"""Several Ray nodes on one machine, and a training driver beside them: all of them processes that a test may kill.

They share nothing with the test session's own cluster: their sockets and token lie in a short folder of their own (Unix
sockets have short paths), and the test process never joins them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.tracking.records import read_metrics

HERE: tuple[str, tuple[str, ...]] = ("127.0.0.1", ())
START_SECONDS = 240.0  # generous: the machine may be busy
START_TRIES = 4
POLL_SECONDS = 0.02
PACKAGES = Path(__file__).resolve().parents[2]


def wait_until(condition: Any, seconds: float, what: str) -> Any:
    """The first true value of `condition()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(POLL_SECONDS)
    return value


def kill(processes: list[psutil.Process], number: int = signal.SIGKILL) -> None:
    """Signal all at once, as a machine that loses power would end them."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    if number == signal.SIGKILL:
        psutil.wait_procs(processes, timeout=20)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@dataclass
class Node:
    """A raylet with its workers, below one `ray start --block`."""

    process: subprocess.Popen[bytes]
    address: str
    label: str  # a resource that no other node has

    def workers(self) -> list[psutil.Process]:
        """The training workers that run here."""
        found = []
        for process in family(self.process.pid):
            try:
                if any("RayTrainWorker" in part for part in process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self) -> None:
        """Lose the whole node."""
        kill(family(self.process.pid))
        self.process.wait()


@dataclass
class Nodes:
    """A Ray cluster whose head has no CPU for workers; a context manager. `prefix` runs a node's commands elsewhere."""

    head: Node = field(init=False)
    nodes: list[Node] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    def start(self, address: str = HERE[0], prefix: tuple[str, ...] = HERE[1]) -> Nodes:
        self.folder = Path(tempfile.mkdtemp(prefix="mv", dir="/tmp"))
        token = self.folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_AUTH", "RAY_ADDRESS"))
        }
        self.environment = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "OMP_NUM_THREADS": "1",
            # Tensors come from the system each time, where a limit is noticed.
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "PYTHONPATH": f"{PACKAGES / 'platform'}:{PACKAGES}",
            **self.settings,
        }
        self.port = free_port()
        self.address = f"{address}:{self.port}"
        options = [
            "--head",
            "--port",
            str(self.port),
            "--num-cpus",
            "0",
            "--temp-dir",
            str(self.folder / "r"),
        ]
        options += ["--include-dashboard", "false", "--ray-client-server-port", str(free_port())]
        self._prefix = prefix
        for _ in range(START_TRIES):
            self.head = self._spawn(options, address, prefix)
            if self._joined(self.head):
                break
        else:
            self.close()
            raise AssertionError(f"no Ray head started in {START_TRIES} tries")
        self.environment["RAY_ADDRESS"] = self.address
        return self

    def add(self, *places: tuple[str, tuple[str, ...]]) -> None:
        """Nodes of one CPU for workers, started together, at (address, prefix of commands); by default one, here."""
        options = ["--address", self.address, "--num-cpus", "1"]
        wanted = list(places or [HERE])
        for _ in range(START_TRIES):
            started = [self._spawn(options, *place) for place in wanted]
            joined = [self._joined(node) for node in started]
            self.nodes += [node for node, there in zip(started, joined, strict=True) if there]
            wanted = [place for place, there in zip(wanted, joined, strict=True) if not there]
            if not wanted:
                return
        raise AssertionError(
            f"{len(wanted)} Ray nodes did not start in {START_TRIES} tries; see {self.folder}"
        )

    def node_id(self, node: Node) -> str:
        """Ray's name for a node."""
        return self.asked(f"[n['NodeID'] for n in ray.nodes() if {node.label!r} in n['Resources']]")[0]

    def busy(self) -> list[Node]:
        """The nodes with training workers."""
        return [node for node in self.nodes if node.process.poll() is None and node.workers()]

    def asked(self, question: str) -> Any:
        """The answer of a Python expression about the cluster (`ray` and its state are there), from a process of its own."""
        script = (
            "import json, logging, ray, ray.util\n"
            f"ray.init(address={self.address!r}, log_to_driver=False, logging_level=logging.ERROR)\n"
            f"print('answer:' + json.dumps({question}))\n"
        )
        done = subprocess.run(
            [*self._prefix, sys.executable, "-c", script],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert "answer:" in done.stdout, done.stderr
        return json.loads(done.stdout.rpartition("answer:")[2])

    def left_behind(self) -> tuple[list[str], list[str]]:
        """(processes of training, placement groups) that a run left on the cluster."""
        names = ("RayTrainWorker", "TrainController", "RunActor", "SynchronizationActor", "PreemptionWatcher")
        running = []
        for node in [self.head, *self.nodes]:
            for process in family(node.process.pid):
                try:
                    line = " ".join(process.cmdline())
                except psutil.NoSuchProcess:
                    continue
                running += [line for name in names if f"ray::{name}" in line]
        groups = self.asked(
            "[group['placement_group_id'] for group in ray.util.placement_group_table().values() if group['state'] != 'REMOVED']"
        )
        return running, groups

    def close(self) -> None:
        """End everything, and make sure of it."""
        for node in [*self.nodes, *([self.head] if hasattr(self, "head") else [])]:
            node.kill()
        own = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(self.folder) in " ".join(process.info["cmdline"] or [])
        ]
        kill(own)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, options: list[str], address: str, prefix: tuple[str, ...]) -> Node:
        label = f"node-{secrets.token_hex(3)}"
        log = self.folder / f"{label}.log"
        command = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--block"]
        command += ["--resources", json.dumps({label: 1})]
        command += ["--node-ip-address", address, "--disable-usage-stats", "--include-log-monitor", "false"]
        command += [
            "--object-store-memory",
            str(100 * 1024**2),
            "--min-worker-port",
            "0",
            "--max-worker-port",
            "0",
        ]
        command += [
            "--dashboard-agent-listen-port",
            str(free_port()),
            "--metrics-export-port",
            str(free_port()),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        return Node(process, address, label)

    def _joined(self, node: Node) -> bool:
        # Ray gives up a raylet that is not there after 30 s, which a busy machine may need.
        log = self.folder / f"{node.label}.log"
        wait_until(
            lambda: "Ray runtime started" in log.read_text() or node.process.poll() is not None,
            START_SECONDS,
            "a Ray node",
        )
        if node.process.poll() is None:
            return True
        node.kill()
        return False


def free_port() -> int:
    """A port that nobody listens on, outside of Ray's own range for workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        if not 10002 <= port <= 19999:
            return port


TRAIN = ("-m", "mergevq_platform.cli", "train", "--no-evaluation")


class Driver:
    """`mergevq train …`, or other words to Python, in a process of its own, with the time of every line that it prints."""

    def __init__(
        self,
        nodes: Nodes,
        home: Path,
        *arguments: str,
        words: tuple[str, ...] = TRAIN,
        prefix: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *words, *arguments],
            env=nodes.environment | {"MERGEVQ_HOME": str(home)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=home,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def output(self) -> str:
        """All that it printed so far."""
        return "\n".join(line for _, line in self.lines)

    def said(self, text: str, since: float = 0.0) -> float | None:
        """When it printed a line with `text` after `since`."""
        return next((at for at, line in self.lines if at >= since and text in line), None)

    def finish(self, seconds: float = 600.0) -> int:
        """Its exit status."""
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


def step_of(run: Run) -> int:
    """The last step whose loss is in the run's journal."""
    journal = run.directory / "journal.jsonl"
    return max(read_metrics(journal).get("train/total", {0: 0.0})) if journal.is_file() else 0


def write_recipe(tree: dict[str, Any], folder: Path) -> str:
    """The recipe's file."""
    path = folder / f"{tree['name']}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def state(run: Run) -> dict[str, Any]:
    """What the newest checkpoint of a run would resume from."""
    return torch.load(Path(run.newest_checkpoint()) / "resume.pt", weights_only=True)


def journal_of(run: Run) -> dict[str, dict[int, float]]:
    """The metrics that training decides; speed and memory are the machine's."""
    metrics = read_metrics(run.directory / "journal.jsonl")
    return {name: points for name, points in metrics.items() if not name.startswith("system/")}


def same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def largest_difference(one: Any, other: Any) -> float:
    """Of the floating-point tensors of two trees, the largest absolute difference."""
    if isinstance(one, torch.Tensor):
        return float((one - other).abs().max()) if one.is_floating_point() and one.numel() else 0.0
    if isinstance(one, dict):
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list):
        return max((largest_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    return 0.0


def newest_checkpoint(run: Run) -> Path:
    """The directory of the newest checkpoint."""
    return Path(checkpoints.listed(run.location)[0])
