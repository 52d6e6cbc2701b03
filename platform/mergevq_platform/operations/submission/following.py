"""Following a job: its log to its end through lost connections, why it does not start, its exit status."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from mergevq_platform.operations.submission.client import Cluster

ASKED = "mergevq.asks"  # what the job's own process asks of the cluster; Ray does not tell that of a job
HINT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # without a line for so long, the connection is made anew: a dead one may not say so
RETRY_SECONDS = (0.5, 1, 2, 5, 10)
PATIENCE_SECONDS = 600.0  # how long a cluster may be out of reach before we stop asking
INTERRUPTED = 130


class OutOfReach(RuntimeError):
    """The cluster did not answer for long; the job may well go on."""


def follow(cluster: Cluster, job: str, *, say: Callable[[str], None] | None = None) -> int:
    """Print a job's log from its beginning until its end; returns the job's exit status.

    A lost connection is made anew and the log goes on where it was. Raises `OutOfReach` if that fails for ten minutes.
    `say` takes the pieces of the log (default: stdout); what we have to say ourselves goes to stderr.
    """
    write = say or _to_stdout
    position = 0
    hinted: str | None = None
    began = reached = time.monotonic()
    attempt = 0
    while True:
        try:
            info = cluster.jobs.get_job_info(job)
            reached = time.monotonic()
            if str(info.status) == "PENDING":
                if time.monotonic() - began > HINT_SECONDS:
                    reason = pending_reason(cluster, info)
                    if reason != hinted:
                        _note(f"still waiting to start: {reason}")
                        hinted = reason
                time.sleep(0.5)
                continue
            if not info.status.is_terminal():
                position = asyncio.run(_tail(cluster, job, position, write))
                attempt = 0
                continue
            text = cluster.jobs.get_job_logs(job)
            write(text[position:])
            return exit_status(info)
        except Exception as error:
            position = getattr(error, "position", position)
            if not _is_network(error):
                raise
            if time.monotonic() - reached > PATIENCE_SECONDS:
                raise OutOfReach(
                    f"{cluster.address} has not answered for {PATIENCE_SECONDS / 60:.0f} minutes; the job may well go on: "
                    f"mergevq jobs logs {job}"
                ) from None
            if attempt == 0:
                _note(
                    f"lost the connection to the cluster ({type(error).__name__}); the job goes on, connecting again"
                )
            time.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1


def exit_status(info: Any) -> int:
    """The exit status of a finished job: the driver's own; 130 for a job that was stopped; 1 for one that never began."""
    match str(info.status):
        case "SUCCEEDED":
            return 0
        case "STOPPED":
            return INTERRUPTED
    return info.driver_exit_code if info.driver_exit_code is not None and info.driver_exit_code > 0 else 1


def end_of(cluster: Cluster, job: str) -> str:
    """How a job ended, in one line."""
    info = cluster.jobs.get_job_info(job)
    return f"{str(info.status).lower()}: {' '.join((info.message or '').split())[:300]}"


def pending_reason(cluster: Cluster, info: Any) -> str:
    """Why a job does not start: what it asks against what the nodes have, or what is being set up."""
    asked: dict[str, float] = json.loads((info.metadata or {}).get(ASKED, "{}"))
    nodes = cluster.nodes()
    if not nodes:
        return "the cluster has no node alive"
    if asked and not any(all(node.get(kind, 0) >= n for kind, n in asked.items()) for node in nodes):
        return (
            f"its driver asks for {amounts(asked)}, and no node has that (nodes: {'; '.join(map(amounts, nodes))}): "
            "lower --cpus, --gpus or --memory, or add a node"
        )
    env = info.runtime_env or {}
    if env.get("pip"):
        return "its packages are being installed, or " + _busy(asked)
    return "its files are being unpacked and its process started, or " + _busy(asked)


def amounts(resources: dict[str, float]) -> str:
    """Resources as people write them."""
    parts = [f"{resources.get('CPU', 0):g} CPU", f"{resources['GPU']:g} GPU" if resources.get("GPU") else ""]
    if resources.get("memory"):
        parts.append(f"{resources['memory'] / 2**30:.3g} GiB")
    return ", ".join(part for part in parts if part)


def _busy(asked: dict[str, float]) -> str:
    return (
        f"all nodes that could hold its driver ({amounts(asked)}) are busy"
        if asked
        else "the head node is busy"
    )


async def _tail(cluster: Cluster, job: str, position: int, write: Callable[[str], None]) -> int:
    # The server sends the log from its beginning each time; what was written already is passed over.
    seen = 0
    lines: AsyncIterator[str] = cluster.jobs.tail_job_logs(job)
    waiting: asyncio.Future = asyncio.ensure_future(anext(lines))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=SILENT_SECONDS)
            if not done:
                return position
            try:
                piece = waiting.result()
            except StopAsyncIteration:
                return position
            if seen + len(piece) > position:
                write(piece[max(0, position - seen) :])
                position = seen + len(piece)
            seen += len(piece)
            waiting = asyncio.ensure_future(anext(lines))
    except Exception as error:
        error.position = position  # type: ignore[attr-defined]  # where the next connection goes on
        raise
    finally:
        waiting.cancel()


def _is_network(error: Exception) -> bool:
    # Ray raises RuntimeError for a closed connection and for what the server answers while it restarts.
    import aiohttp

    return isinstance(error, OSError | RuntimeError | aiohttp.ClientError) and "does not exist" not in str(
        error
    )


def _note(text: str) -> None:
    print(f"mergevq: {text}", file=sys.stderr, flush=True)


def _to_stdout(text: str) -> None:
    print(text, end="", flush=True)
