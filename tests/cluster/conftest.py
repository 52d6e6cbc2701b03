"""A Ray cluster of its own beside the suite's: other ports, token authentication, and an interpreter that lacks our package."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 240


@dataclass
class BareCluster:
    """A head (and nodes) started in an empty folder by an interpreter that cannot import our package."""

    folder: Path
    python: Path
    token: Path
    address: str
    gcs: str
    processes: list[subprocess.Popen] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)  # Ray's own

    @property
    def home(self) -> Path:
        """Where runs live on the cluster."""
        return self.folder / "cluster-home"

    def start(self, *arguments: str) -> subprocess.Popen:
        """A Ray node as `ray start --block`; the process group is the node."""
        environment = {
            "PATH": f"{self.python.parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        cwd = self.folder / "empty"
        cwd.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [
                *(self.python, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"),
                *("--node-ip-address=127.0.0.1", "--disable-usage-stats", "--object-store-memory=100000000"),
                f"--dashboard-agent-listen-port={free_port()}",
                *arguments,
            ],
            env=environment,
            cwd=cwd,
            stdout=(self.folder / "ray-start.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def wait(self) -> None:
        """Wait until the dashboard answers (with 401: it wants a token)."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.processes[0].poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/api/version", timeout=5)
            except urllib.error.HTTPError as error:
                if error.code == 401:
                    return
            except OSError:
                pass
            time.sleep(0.3)
        raise AssertionError((self.folder / "ray-start.log").read_text())

    def join(self, count: int) -> None:
        """Start one more node of one CPU, so that there are `count`; Ray gives one up that takes more than 30 s to start."""
        for _ in range(4):
            # A folder of its own: nodes that share one delete each other's unpacked jobs when they are done with them.
            self.folders.append(Path("/tmp") / f"mergevq-ray-{secrets.token_hex(3)}")
            process = self.start(f"--address={self.gcs}", "--num-cpus=1", f"--temp-dir={self.folders[-1]}")
            while process.poll() is None:
                if self.alive() >= count:
                    return
                time.sleep(0.5)
            self.processes.remove(process)
        raise AssertionError((self.folder / "ray-start.log").read_text())

    def alive(self) -> int:
        """How many nodes there are."""
        request = urllib.request.Request(
            f"{self.address}/nodes?view=summary",
            headers={"Authorization": f"Bearer {self.token.read_text()}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            summary = json.load(answer)["data"]["summary"]
        return sum(node.get("raylet", {}).get("state") == "ALIVE" for node in summary)

    def kill(self, process: subprocess.Popen) -> None:
        """Kill a node with all its processes at once, as a machine that loses power."""
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=20)

    def close(self) -> None:
        """End every process of the cluster."""
        family = [p for p in psutil.process_iter() if self._ours(p)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=20)
        for process in self.processes:
            process.wait(20)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _ours(self, process: psutil.Process) -> bool:
        try:
            text = " ".join(process.cmdline())
            return str(self.folder) in text or process.environ().get("HOME") == str(self.folder)
        except psutil.Error:
            return False

    def environment(self, **more: str) -> dict[str, str]:
        """What a user's shell has: our code (the tests' own), and the token's file."""
        base = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MERGEVQ_"))}
        return (
            base
            | {
                "PYTHONPATH": os.pathsep.join((str(ROOT / "platform"), str(ROOT))),
                "RAY_AUTH_TOKEN_PATH": str(self.token),
                "RAY_API_SERVER_ADDRESS": self.address,
            }
            | more
        )

    def mergevq(
        self, *words: str, cwd: Path, timeout: float = 400, **more: str
    ) -> subprocess.CompletedProcess:
        """Run the command line in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "mergevq_platform.cli", *words],
            cwd=cwd,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def interpreter_without_us(folder: Path) -> Path:
    """An interpreter with the packages of this one but not ours: `.pth` files of a folder named in a `.pth` are not read."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    there = subprocess.run(
        [
            python,
            "-c",
            "import importlib.util as u; print(*(bool(u.find_spec(n)) for n in ('ray', 'mergevq')))",
        ],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if there != ["True", "False"]:
        pytest.skip(
            "mergevq is installed here as a copy, not as an editable checkout: no interpreter lacks it"
        )
    return python


@pytest.fixture(scope="session")
def bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """One head with two CPUs on loopback ports of its own."""
    folder = tmp_path_factory.mktemp("bare")
    yield from started(folder, "--num-cpus=2")


@pytest.fixture
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """A head without CPUs, and two nodes of one CPU each: `processes[1]` and `processes[2]`."""
    for cluster in started(tmp_path_factory.mktemp("nodes"), "--num-cpus=0"):
        for joined in (2, 3):
            cluster.join(joined)
        yield cluster


def started(folder: Path, *arguments: str) -> Iterator[BareCluster]:
    """A head, ended with everything that joined it."""
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    dashboard, gcs = free_port(), free_port()
    cluster = BareCluster(
        folder,
        interpreter_without_us(folder / "venv"),
        token,
        f"http://127.0.0.1:{dashboard}",
        f"127.0.0.1:{gcs}",
    )
    # Ray's sockets lie in its temporary folder, and a socket's path may have 107 characters.
    ray_folder = Path("/tmp") / f"mergevq-ray-{secrets.token_hex(3)}"
    cluster.folders.append(ray_folder)
    try:
        cluster.start(
            "--head",
            f"--port={gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={ray_folder}",
            *arguments,
        )
        cluster.wait()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def unused_ports() -> list[int]:
    """Five ports that nobody listens on now."""
    return [free_port() for _ in range(5)]
