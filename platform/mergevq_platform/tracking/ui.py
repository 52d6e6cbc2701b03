"""MLflow's interface over the store in use: a child server on loopback, and where it shows the curves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from mergevq.errors import InputError
from mergevq_platform.tracking import hosts, landing, shared_view
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.undelivered import lacking

LOOPBACK = "127.0.0.1"
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is this machine's own


class UiServer:
    """MLflow's server over the database of `store`, as a child process; a context manager that ends it.

    `port` None takes 5000, or a free port where that is taken. Raises `InputError` for a port in use and
    `RuntimeError`, with the end of its output, for a server that does not come up within `patience_seconds`.
    """

    def __init__(
        self,
        store: Store,
        *,
        host: str = LOOPBACK,
        port: int | None = None,
        patience_seconds: float = 180.0,
    ) -> None:
        if store.is_server:
            raise InputError(f"{store.public_uri} is a server already: open it")
        store.prepare()
        self.host = host
        self.port = _choose_port(host, port)
        prefix = landing.static_prefix(os.environ)
        self.url = f"http://{hosts.names(host)[0]}:{self.port}{prefix}"
        here = LOOPBACK if host == "0.0.0.0" else "[::1]" if hosts.is_any(host) else hosts.names(host)[0]
        self._local_url = f"http://{here}:{self.port}{prefix}"
        self.lacking = landing.lacking()  # why it has no landing page, if it has none
        self._output = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [*_command(store, host, self.port), *([] if self.lacking else ["--app-name", landing.APP_NAME])],
            env=_environment(store) | hosts.allowed(host, self.port, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: Ctrl-C reaches us alone, and we end all of it
        )
        try:
            self._wait_until_healthy(patience_seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process that was started; its children are the rest of the server."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._process.poll() is None

    def link(self, address: str) -> str:
        """The best way to `address`, one of this server's: through its landing page where it has one."""
        return address if self.lacking else landing.landing_link(address)

    def output(self) -> str:
        """The last output of the server."""
        self._output.flush()
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - 4000))
        return self._output.read()

    def wait(self) -> None:
        """Wait until the server ends by itself."""
        self._process.wait()

    def close(self) -> None:
        """End the server and everything it started."""
        if self._output.closed:
            return
        family = _family(self._process.pid)
        for sign, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for member in family:
                with contextlib.suppress(psutil.Error):
                    member.send_signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            _, family = psutil.wait_procs(family, timeout=seconds)
            if not family:
                break
        self._output.close()

    def __enter__(self) -> UiServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until_healthy(self, patience_seconds: float) -> None:
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            if not self.alive:
                raise RuntimeError(f"MLflow's server ended at once:\n{self.output()}")
            with (
                contextlib.suppress(OSError),
                _DIRECTLY.open(f"{self._local_url}/health", timeout=2) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(
            f"MLflow's server did not answer within {patience_seconds:.0f} s:\n{self.output()}"
        )


def serve_ui(
    store: Store,
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Serve MLflow's interface until Ctrl-C or SIGTERM, having printed where the curves are; the exit status.

    For a store that is a server already, only the addresses are printed.
    """
    if store.is_server:
        for line in describe(store, store.public_uri):
            say(line)
        return 0
    signs = (signal.SIGINT, signal.SIGTERM)

    def on_signal(_: int, __: FrameType | None) -> None:
        for sign in signs:
            signal.signal(sign, signal.SIG_IGN)  # impatience must not interrupt the cleaning up
        raise KeyboardInterrupt

    before = {sign: signal.signal(sign, on_signal) for sign in signs}
    try:
        say(f"starting MLflow over {store.public_uri} ...")
        with UiServer(store, host=host, port=port) as server:
            for line in describe(store, server.url, server.link):
                say(line)
            if server.lacking:
                say(f'no landing page, so press "Model training" on the left once: {server.lacking}')
            say("Ctrl-C ends it")
            server.wait()
            say(f"MLflow's server ended by itself:\n{server.output()}")
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def tracking_link(store: Store, experiment: str, run: str | None = None) -> str:
    """One line: the command that shows an experiment's curves (or one run's pages), and the address it will have."""
    if store.is_server:
        found = shared_view.link(store, store.public_uri, experiment, run)
        return f"see it in MLflow: {found or store.public_uri}"
    found = shared_view.link(store, f"http://{LOOPBACK}:5000", experiment, run)
    return f"see it in MLflow: mergevq ui, then {found}" if found else "see it in MLflow: mergevq ui"


def closing_line(recorder: LocalRecorder, experiment: str, *, sync: str) -> str:
    """What a verb that has closed its recorder ends with: where to look or, where the store lacks records, how to deliver them."""
    assert recorder.store is not None
    reason = recorder.report.error if recorder.report else None
    undelivered = lacking(recorder.store, [recorder.journal.run_dir], sync=sync, reason=reason)
    return undelivered or tracking_link(recorder.store, experiment)


def describe(store: Store, base_url: str, link: Callable[[str], str] = str) -> list[str]:
    """One line per experiment with runs of ours: its name, what it holds, and the address of its curves, through `link`."""
    counts: dict[str, list[bool]] = {}
    for run in list_runs(store):
        counts.setdefault(run.experiment, []).append(run.has_curve)
    if not counts:
        return [f"{base_url}  (no runs yet)"]
    return [
        f"{experiment}: {len(curves)} run{'s' * (len(curves) > 1)}, {sum(curves)} with a curve\n"
        f"  {shared_view.link(store, base_url, experiment, through=link)}"
        for experiment, curves in counts.items()
    ]


def _command(store: Store, host: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server"]
    if store.artifact_root is not None:
        root = Path(urllib.request.url2pathname(store.artifact_root.removeprefix("file://")))
        command += ["--artifacts-destination", str(root)]
    return [*command, "--host", host.strip("[]"), "--port", str(port), "--workers", "1"]


def _environment(store: Store) -> dict[str, str]:
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Its job runner serves language models, takes a quarter of a gigabyte and leaves our process group.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    inherited = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    # Not on the command line: every account of the machine can read that, and the URI may hold a password.
    return defaults | inherited | {"MLFLOW_BACKEND_STORE_URI": store.uri}


def _choose_port(host: str, port: int | None) -> int:
    for candidate in (port,) if port is not None else (5000, 0):
        try:
            with socket.socket(hosts.family(host)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host.strip("[]"), candidate))
                return probe.getsockname()[1]
        except OSError as error:
            reason = error.strerror
    if port is None:
        raise InputError(
            f"--host {host}: {reason}; name an address of this machine, or 0.0.0.0 for all of them"
        )
    raise InputError(f"port {port} on {host}: {reason}; name another with --port")


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []
