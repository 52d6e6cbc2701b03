"""The jobs of a cluster: listing, finding, stopping."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from ray.job_submission import JobDetails, JobStatus

from mergevq.errors import InputError
from mergevq_platform.operations.submission.client import ClusterClient

STOP_SECONDS = 600  # what a job gets to write its checkpoint when it is stopped; Ray's own default is 3
STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
CANCEL_SECONDS = 120.0  # to take away a job that has not begun
_CANCEL = (
    "import ray; from ray.dashboard.modules.job import job_manager as jobs; "
    "ray.init(address='auto', log_to_driver=False); "
    "ray.kill(ray.get_actor(jobs.JOB_ACTOR_NAME_TEMPLATE.format(job_id={job!r}), "
    "namespace=jobs.SUPERVISOR_ACTOR_RAY_NAMESPACE))"
)


def list_jobs(client: ClusterClient, *, all_jobs: bool = False) -> list[JobDetails]:
    """The jobs that we submitted, newest first; with `all_jobs` everyone's."""
    hidden = (None, "probe")
    found = [
        info
        for info in client.list_jobs()
        if info.submission_id and (all_jobs or (info.metadata or {}).get("mergevq.verb") not in hidden)
    ]
    return sorted(found, key=lambda info: -(info.start_time or 0))


def require(client: ClusterClient, job: str) -> JobDetails:
    """A job's info. Raises `InputError` if the cluster knows none of that id."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        known = ", ".join(str(info.submission_id) for info in list_jobs(client)[:5]) or "none"
        raise InputError(f"no job '{job}' at {client.address}: jobs there: {known}") from None


def stop(
    client: ClusterClient, job: str, *, say: Callable[[str], None] = print, poll_seconds: float = 0.5
) -> JobStatus:
    """Stop a job gracefully and wait until it has ended; returns its status.

    The job's driver is sent SIGTERM, on which a run or a sweep ends at a step boundary with a checkpoint. It has
    `STOP_SECONDS` for that (given when it was submitted); then Ray kills it. One that waits for resources is cancelled.
    """
    info = require(client, job)
    if info.status.is_terminal():
        say(f"job {job} has ended already: {str(info.status).lower()}")
        return info.status
    env_vars = (info.runtime_env or {}).get("env_vars", {})
    if not (info.metadata or {}).get("mergevq.verb") and STOP_VARIABLE not in env_vars:
        say(
            f"warning: job {job} was not submitted by mergevq: Ray gives it 3 s, perhaps too few for a checkpoint"
        )
    if info.status == JobStatus.PENDING:
        _cancel_pending(client, job, poll_seconds)
        say(f"job {job} had not begun: cancelled")
        return JobStatus.STOPPED
    client.stop_job(job)
    say(f"asked {job} to stop; it writes a checkpoint first (up to {STOP_SECONDS // 60} minutes)")
    deadline = time.monotonic() + STOP_SECONDS + 60
    while time.monotonic() < deadline:
        status = client.get_job_status(job)
        if status.is_terminal():
            return status
        time.sleep(poll_seconds)
    raise RuntimeError(f"job {job} has not ended after {STOP_SECONDS + 60} s: look at its node")


def _cancel_pending(client: ClusterClient, job: str, poll_seconds: float) -> None:
    # Ray's own stop is a message to the job's supervisor, which is not there yet; so the supervisor is killed, from inside.
    errand = client.submit_job(
        entrypoint=f"python -c {shlex.quote(_CANCEL.format(job=job))}",
        metadata={"mergevq.verb": "withdraw"},
    )
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:
        if client.get_job_status(errand).is_terminal() and require(client, job).status.is_terminal():
            client.delete_job(errand)
            return
        time.sleep(poll_seconds)
    raise RuntimeError(
        f"job {job} has not begun and could not be cancelled within {CANCEL_SECONDS:.0f} s: mergevq jobs logs {errand}"
    )
