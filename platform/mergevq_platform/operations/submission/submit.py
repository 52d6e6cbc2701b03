"""A verb as a Ray job."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergevq.errors import InputError
from mergevq_platform.operations.submission import packages, staging
from mergevq_platform.operations.submission.client import ClusterClient
from mergevq_platform.operations.submission.following import RESOURCES_KEY
from mergevq_platform.operations.submission.jobs import STOP_SECONDS, STOP_VARIABLE
from mergevq_platform.operations.submission.verb import Verb
from mergevq_platform.storage import naming
from mergevq_platform.storage.credentials import refuse_credentials
from mergevq_platform.storage.runs import git_commit
from mergevq_platform.tracking.proxies import LOOPBACK
from mergevq_platform.tracking.recorder import current_user

RECORDING = ("train", "sweep", "evaluate", "sync", "runs")  # verbs that write or read the home's store
SETUP_SECONDS = 1800  # to install packages


@dataclass(frozen=True, kw_only=True)
class DriverResources:
    """Resources of the job's own process (the driver); its workers ask for themselves."""

    cpus: float | None = None
    gpus: float | None = None
    memory_bytes: int | None = None

    def by_kind(self) -> dict[str, float]:
        """The amounts by Ray's names, without those that are nothing."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_bytes}
        return {kind: amount for kind, amount in amounts.items() if amount}


def submit(
    client: ClusterClient,
    verb: Verb,
    *,
    local_home: Path,
    home: str | None = None,
    name: str | None = None,
    driver: DriverResources | None = None,
    image_has_mergevq: bool = False,
    pip: Sequence[str] = (),
    include: Sequence[Path] = (),
    limit_bytes: int = staging.LIMIT_BYTES,
    say: Callable[[str], None] = print,
) -> str:
    """Submit a verb (of `read_verb`) as a job and return the job's id.

    `home` is where runs live on the cluster (default: what the cluster sets as MERGEVQ_HOME). `pip` names packages to
    install besides those that are missing; `image_has_mergevq` uploads no code of ours. Raises `InputError`, before anything is
    uploaded, for paths that only this machine has, for packages that cannot be made to fit, and for secrets.
    """
    if name is not None:
        naming.check_name(name, "--name", longest=naming.LONGEST - naming.ADDED)
    for package in pip:
        refuse_credentials(package, "--pip", "what a job installs is open to all who see the cluster")
    info = packages.query(client, local_home)
    env_vars = environment(info, home=home, verb=verb.words[0], cluster_is_local=client.is_local)
    if image_has_mergevq and not info.holds_mergevq:
        raise InputError("the cluster's image holds no mergevq: leave out --image-has-mergevq")
    installation = (
        packages.of_image(info) if image_has_mergevq else packages.compare(info, packages.requirements())
    )
    for warning in installation.warnings:
        say(f"warning: {warning}")
    driver = driver or DriverResources()
    job = name or job_name(verb)
    words = [*verb.words, "--name", job] if verb.names_a_run else verb.words
    runtime_env: dict[str, Any] = {
        "env_vars": env_vars,
        "config": {"setup_timeout_seconds": SETUP_SECONDS},
    }
    with tempfile.TemporaryDirectory(prefix="mergevq-job-") as folder:
        staged = staging.stage(
            words,
            Path(folder),
            packages=not image_has_mergevq,
            include=[*verb.include, *include],
            limit_bytes=limit_bytes,
        )
        say(staged.described())
        if staged.files:
            runtime_env["working_dir"] = folder
        if install := [*installation.install, *pip]:
            say(f"to be installed on the cluster: {', '.join(install)}")
            runtime_env["pip"] = install
        try:
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", "mergevq_platform.cli", *staged.words]),
                submission_id=job,
                runtime_env=runtime_env,
                metadata=_metadata(verb, driver),
                entrypoint_num_cpus=driver.cpus,
                entrypoint_num_gpus=driver.gpus,
                entrypoint_memory=driver.memory_bytes,
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            raise InputError(f"the cluster has a job '{job}' already: choose another --name") from None
    say(f"job {job}: mergevq {shlex.join(staged.words)}")
    return job


def environment(
    info: packages.ClusterInfo, *, home: str | None, verb: str, cluster_is_local: bool
) -> dict[str, str]:
    """The variables of a job: where runs, checkpoints and the tracking store are. What the cluster itself sets stands.

    Everyone who sees the cluster can read a job's environment: settings go there, secrets do not. Raises `InputError` for
    secrets and for places that only this machine has.
    """
    found = {STOP_VARIABLE: str(STOP_SECONDS)}
    if home:
        if "://" in home or not Path(home).is_absolute():
            raise InputError(f"--home '{home}': name an absolute path that every node of the cluster sees")
        found["MERGEVQ_HOME"] = home
    elif "MERGEVQ_HOME" not in info.environment and verb in RECORDING:
        raise InputError(
            "where do runs live on the cluster? A job's own folder goes with the job: give --home PATH, one that every node "
            "sees, or set MERGEVQ_HOME in the cluster's environment"
        )
    storage = os.environ.get("MERGEVQ_STORAGE")
    if storage and "MERGEVQ_STORAGE" not in info.environment:
        refuse_credentials(storage, "MERGEVQ_STORAGE", "set them in the cluster's own environment")
        found["MERGEVQ_STORAGE"] = storage
    tracking = os.environ.get("MLFLOW_TRACKING_URI")
    if tracking and not info.tracking:
        refuse_credentials(
            tracking,
            "MLFLOW_TRACKING_URI",
            "a job's environment is open to all who see the cluster; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "in the cluster's environment, and give the URI without them",
        )
        parts = urllib.parse.urlsplit(tracking)
        if parts.scheme in ("http", "https") and parts.hostname in LOOPBACK and not cluster_is_local:
            raise InputError(
                f"MLFLOW_TRACKING_URI {tracking} is this machine's: give the address that the cluster reaches"
            )
        found["MLFLOW_TRACKING_URI"] = tracking
    return found


def job_name(verb: Verb) -> str:
    """A job's id: verb, recipe or run, time, four letters. Without the verb where it is the name of a run too."""
    label = "-".join(
        part for part in ("" if verb.names_a_run else verb.words[0], verb.recipe or verb.name) if part
    )
    return naming.derived(
        naming.fitted(Path(label).name), f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    )


def _metadata(verb: Verb, driver: DriverResources) -> dict[str, str]:
    found = {
        "mergevq.verb": verb.words[0],
        "mergevq.recipe": verb.recipe,
        "mergevq.commit": git_commit(),
        "mergevq.user": current_user(),
        RESOURCES_KEY: json.dumps(driver.by_kind()),
    }
    return {key: value for key, value in found.items() if value}
