"""Following a job: its log to its end through lost connections, the reason why it is pending, its exit status."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from mergevq_platform.operations.submission.client import ClusterClient

RESOURCES_KEY = "mergevq.asks"  # metadata: the driver's resources, which Ray does not tell of a job
HINT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # without a line for so long, the connection is made anew: a dead one may not say so
RETRY_SECONDS = (0.5, 1, 2, 5, 10)
PATIENCE_SECONDS = 600.0  # how long a cluster may be out of reach before we stop asking
INTERRUPTED = 130


class OutOfReach(RuntimeError):
    """The cluster did not answer for long; the job may well go on."""


class JobLog:
    """A job's log, written once: where a connection is lost, the next goes on."""

    def __init__(self, client: ClusterClient, job: str, write: Callable[[str], None]) -> None:
        self.client, self.job, self.write = client, job, write
        self.position = 0  # letters written

    async def tail(self) -> None:
        """Write what comes until the log ends or is silent. The server sends it from its beginning each time."""
        received = 0
        pieces = self.client.tail_job_logs(self.job)
        while True:
            try:
                piece = await asyncio.wait_for(anext(pieces), SILENT_SECONDS)
            except (StopAsyncIteration, TimeoutError):
                return
            self._write_new(piece, received)
            received += len(piece)

    def rest(self) -> None:
        """Write the rest of the log of a job that has ended."""
        self._write_new(self.client.get_job_logs(self.job), 0)

    def _write_new(self, piece: str, begin: int) -> None:
        if begin + len(piece) > self.position:
            self.write(piece[max(0, self.position - begin) :])
            self.position = begin + len(piece)


def follow(client: ClusterClient, job: str, *, say: Callable[[str], None] | None = None) -> int:
    """Print a job's log from its beginning until its end; returns the job's exit status.

    A lost connection is made anew and the log goes on where it was. Raises `OutOfReach` if that fails for ten minutes.
    `say` takes the pieces of the log (default: stdout); what we have to say ourselves goes to stderr.
    """
    log = JobLog(client, job, say or (lambda text: print(text, end="", flush=True)))
    hint: str | None = None
    began = reached = time.monotonic()
    attempt = 0
    while True:
        try:
            info = client.get_job_info(job)
            reached = time.monotonic()
            if info.status.is_terminal():
                log.rest()
                return exit_status(info)
            if info.status == JobStatus.PENDING:
                reason = pending_reason(client, info) if time.monotonic() - began > HINT_SECONDS else hint
                if reason != hint:
                    _note(f"still waiting to start: {reason}")
                hint = reason
                time.sleep(0.5)
                continue
            asyncio.run(log.tail())
            attempt = 0
        # Ray raises RuntimeError for a closed connection and for what the server answers while it restarts.
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            if "does not exist" in str(error):
                raise
            if time.monotonic() - reached > PATIENCE_SECONDS:
                raise OutOfReach(
                    f"{client.address} has not answered for {PATIENCE_SECONDS / 60:.0f} minutes; the job may well go on: "
                    f"mergevq jobs logs {job}"
                ) from None
            if attempt == 0:
                _note(
                    f"lost the connection to the cluster ({type(error).__name__}); the job goes on, connecting again"
                )
            time.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1


def exit_status(info: JobDetails) -> int:
    """The exit status of a finished job: the driver's own; 130 for a job that was stopped; 1 for one that never began."""
    match info.status:
        case JobStatus.SUCCEEDED:
            return 0
        case JobStatus.STOPPED:
            return INTERRUPTED
    return info.driver_exit_code if info.driver_exit_code is not None and info.driver_exit_code > 0 else 1


def end_of(client: ClusterClient, job: str) -> str:
    """The end of a job, in one line."""
    info = client.get_job_info(job)
    return f"{str(info.status).lower()}: {' '.join((info.message or '').split())[:300]}"


def pending_reason(client: ClusterClient, info: JobDetails) -> str:
    """The reason why a job is pending: resources that its driver asks and the nodes lack, or a set-up under way."""
    wanted: dict[str, float] = json.loads((info.metadata or {}).get(RESOURCES_KEY, "{}"))
    nodes = client.nodes()
    if not nodes:
        return "the cluster has no node alive"
    if wanted and not any(all(node.get(kind, 0) >= n for kind, n in wanted.items()) for node in nodes):
        return (
            f"its driver asks for {amounts(wanted)}, and no node has that (nodes: {'; '.join(map(amounts, nodes))}): "
            "lower --cpus, --gpus or --memory, or add a node"
        )
    starting = "files are being unpacked and its process started"
    doing = "packages are being installed" if (info.runtime_env or {}).get("pip") else starting
    where = f"all nodes that could hold its driver ({amounts(wanted)}) are" if wanted else "the head node is"
    return f"its {doing}, or {where} busy"


def amounts(resources: dict[str, float]) -> str:
    """Resources as people write them."""
    parts = [f"{resources.get('CPU', 0):g} CPU", f"{resources['GPU']:g} GPU" if resources.get("GPU") else ""]
    if resources.get("memory"):
        parts.append(f"{resources['memory'] / 2**30:.3g} GiB")
    return ", ".join(part for part in parts if part)


def _note(text: str) -> None:
    print(f"mergevq: {text}", file=sys.stderr, flush=True)
