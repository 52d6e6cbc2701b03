"""A Ray cluster: joined, or started on this machine; its devices and resources."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mergevq.errors import InputError
from mergevq_platform.distributed import local_clusters

if TYPE_CHECKING:
    from mergevq_platform.recipe import ClusterConfig

AUTO = "auto"  # Ray's word for the cluster of this machine
STAY_POLL_SECONDS = 1.0
LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2
SMALL_CLUSTER_POLL_SECONDS = "0.5"  # Ray Train paces every report at this interval; its own default is 2 s
_started = set[int]()  # this process, once it has started a cluster: forked ones have not


def connect(home: Path, *, address: str | None = None) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS), else start one on this machine with token authentication.

    The address `auto` is the cluster that another command of this home has started here, else whichever Ray finds on this
    machine. A cluster that this process already joined is kept. Raises `InputError` if no cluster answers at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address == AUTO:
        found = local_clusters.the_one(home)
        address, of_home = found or AUTO, found is not None
    else:
        of_home = address is None or address in local_clusters.running(home)
    if of_home:
        _use_token(home)
    import ray
    from ray._private.authentication import authentication_token_setup as token_setup

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", SMALL_CLUSTER_POLL_SECONDS)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        if of_home:
            # Of itself Ray does this for a cluster that it has found, not for one that is named; the mode was read as it was imported.
            token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise InputError(
                f"no Ray cluster answers at '{address}' ({error}): start one or unset RAY_ADDRESS; one with a token needs "
                "RAY_AUTH_TOKEN_PATH"
            ) from None
    else:
        with children_in_a_group_of_their_own():
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            )
        _started.add(os.getpid())


def stay_for_urgent() -> None:
    """Keep the cluster that this process has started until the urgent jobs of other processes on it have ended, and say so."""
    import ray

    from mergevq_platform.distributed.yielding import job_of, leases

    said: list[str] = []
    while os.getpid() in _started and ray.is_initialized() and (held := leases()):
        if held != said:
            said = held
            names = ", ".join(map(job_of, held))
            print(
                f"done; the cluster of this command stays for {names} (Ctrl-C ends it)",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(STAY_POLL_SECONDS)


@contextmanager
def children_in_a_group_of_their_own() -> Iterator[None]:
    """Processes started in the context are in another process group than this one, unless this one leads its group.

    `timeout` and shells signal whole groups. Without Ray a run could not end at a step with a checkpoint and its status
    recorded: the signal is for this process alone, which then stops Ray.
    """
    group, parent = os.getpgrp(), os.getppid()
    if group == os.getpid():  # a leader cannot leave its group
        yield
        return
    os.setpgid(0, 0)
    try:
        yield
    finally:
        with suppress(OSError):  # the process is gone
            os.setpgid(0, group)
    if os.getppid() != parent:  # Ctrl-C, which went to the group meanwhile
        raise KeyboardInterrupt


def choose_device(wanted: Literal["auto", "cpu", "cuda"], workers: int) -> Literal["cpu", "cuda"]:
    """The device of every worker: GPUs where the cluster has one for each, unless the recipe says otherwise."""
    import ray

    if wanted == "auto":
        return "cuda" if ray.cluster_resources().get("GPU", 0) >= workers else "cpu"
    return wanted


def evaluators(cluster: ClusterConfig) -> tuple[int, Literal["cpu", "cuda"], str | None]:
    """(workers, device, note) of a finished run's evaluation: see `evaluators_on`."""
    import ray

    return evaluators_on(cluster, int(ray.cluster_resources().get("GPU", 0)))


def evaluators_on(cluster: ClusterConfig, gpus: int) -> tuple[int, Literal["cpu", "cuda"], str | None]:
    """The training's workers and device on a cluster that has so many GPUs now.

    A run may have gone on with fewer workers than it began with: then there are as many as there are GPUs.
    """
    if cluster.device == "cpu" or (cluster.device == "auto" and gpus < cluster.least_workers):
        return cluster.workers, "cpu", None
    if gpus >= cluster.workers:
        return cluster.workers, "cuda", None
    lost = f"the cluster has {gpus} GPU{'s' * (gpus != 1)} now, cluster.workers is {cluster.workers}: evaluating on"
    return (gpus, "cuda", f"{lost} {gpus}") if gpus else (cluster.workers, "cpu", f"{lost} CPUs")


def require_resources(cluster: ClusterConfig, device: Literal["cpu", "cuda"]) -> None:
    """Raise `InputError` if the cluster as it is can never hold the workers, instead of waiting for ever."""
    if lack := shortage(cluster, device):
        raise InputError(
            f"the recipe asks for {lack}: lower cluster.workers, {'' if device == 'cpu' else 'set cluster.device=cpu, '}or add nodes"
        )


def shortage(cluster: ClusterConfig, device: Literal["cpu", "cuda"]) -> str | None:
    """The resources that the run needs at least and the cluster's nodes lack, busy or not; None if none."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    per_worker = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if device == "cuda" else {})
    room = sum(min(int(node.get(kind, 0) // amount) for kind, amount in per_worker.items()) for node in nodes)
    if room >= cluster.least_workers:
        return None
    has = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    needs = " and ".join(f"{amount} {kind}{'s' if amount > 1 else ''}" for kind, amount in per_worker.items())
    return f"{cluster.least_workers} workers of {needs} each, but this cluster has room for {room} (nodes: {has})"


def _use_token(home: Path) -> None:
    # A local `ray.init()` turns token authentication on by itself, and would write its token, readable by all, into
    # the user's home. Only the path is set here: Ray reads the mode when it is imported, which has happened.
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if given or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    path = local_clusters.token_of(home)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    elif path.stat().st_mode & 0o077:  # copied by hand, perhaps
        path.chmod(0o600)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
