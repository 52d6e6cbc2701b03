"""Examines every node of a cluster, or this machine alone; says each finding as it comes."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from mergevq.errors import InputError
from mergevq_platform.distributed import cluster
from mergevq_platform.distributed.failures import one_line
from mergevq_platform.distributed.node_interface import use_node_interface
from mergevq_platform.operations import bandwidth
from mergevq_platform.operations.doctor import checks, node
from mergevq_platform.operations.doctor.checks import Finding
from mergevq_platform.operations.doctor.node import NodeQuery, NodeReport
from mergevq_platform.recipe import Recipe, weights_files
from mergevq_platform.storage.credentials import without_credentials
from mergevq_platform.storage.lookup import places_of_runs
from mergevq_platform.storage.settings import Settings
from mergevq_platform.tracking.store import Store, reason_of

ANSWER_SECONDS = 180
CLOCK_TRIES = 3


class Nodes(Protocol):
    """Something that runs functions on every node."""

    names: list[str]

    def each(self, function: Callable, arguments: dict[str, tuple]) -> dict[str, Any]:
        """function(*arguments) on every node named: name -> result. Raises what a node raises."""

    def network(self) -> bandwidth.AllReduce:
        """The measured all-reduce."""


class ThisMachine:
    """One node, this process, no Ray."""

    def __init__(self) -> None:
        self.names = [node.host_name()]

    def each(self, function: Callable, arguments: dict[str, tuple]) -> dict[str, Any]:
        """Called here."""
        return {name: function(*own) for name, own in arguments.items()}

    def network(self) -> bandwidth.AllReduce:
        """Between two processes."""
        return bandwidth.between_processes()


class ClusterNodes:
    """The nodes of the cluster that this process has joined; every query is a task pinned to its node."""

    def __init__(self) -> None:
        import ray

        self.ids: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        self.gpus: dict[str, float] = {}
        for found in ray.nodes():
            if found["Alive"]:
                name, count = found["NodeName"], 2
                while name in self.ids:  # several raylets of one machine
                    name, count = f"{found['NodeName']}#{count}", count + 1
                self.ids[name] = found["NodeID"]
                self.addresses[name] = found["NodeManagerAddress"]
                self.gpus[name] = found["Resources"].get("GPU", 0)
        self.names = list(self.ids)

    def each(
        self,
        function: Callable,
        arguments: dict[str, tuple],
        *,
        gpus: float = 0,
        seconds: float = ANSWER_SECONDS,
    ) -> dict[str, Any]:
        """As tasks, at once. Raises `TimeoutError` naming the nodes that do not answer."""
        import ray

        remote = ray.remote(function)
        waiting = {
            name: remote.options(
                num_cpus=0, num_gpus=gpus, max_retries=0, label_selector={"ray.io/node-id": self.ids[name]}
            ).remote(*own)
            for name, own in arguments.items()
        }
        _, late = ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=seconds)
        if late:
            names = ", ".join(name for name, task in waiting.items() if task in late)
            for task in late:
                ray.cancel(task, force=True)
            raise TimeoutError(f"no answer from {names} within {seconds:.0f} s")
        return {name: ray.get(task) for name, task in waiting.items()}

    def network(self) -> bandwidth.AllReduce:
        """Between nodes (NCCL where all have GPUs); on a single one between two processes."""
        if len(self.names) == 1:
            return self.each(bandwidth.between_processes, {self.names[0]: ()})[self.names[0]]
        backend = "nccl" if all(self.gpus.values()) else "gloo"
        first = self.names[0]
        address = self.addresses[first]
        port = self.each(bandwidth.free_port, {first: (address,)})[first]
        arguments = {
            name: (rank, len(self.names), address, port, backend) for rank, name in enumerate(self.names)
        }
        answers = self.each(_measured_on_node, arguments, gpus=1 if backend == "nccl" else 0)
        return answers[first]


def _measured_on_node(*arguments: Any) -> bandwidth.AllReduce:
    use_node_interface()
    return bandwidth.measure(*arguments)


def examine(
    recipe: Recipe | None,
    *,
    settings: Settings,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Finding]:
    """All findings, said as they come: of the cluster at `address` (or RAY_ADDRESS), else of this machine alone."""
    nodes: Nodes
    if address or os.environ.get("RAY_ADDRESS"):
        cluster.connect(settings.home, address=address)
        nodes = ClusterNodes()
    else:
        nodes = ThisMachine()
    findings: list[Finding] = []

    def add(found: Iterable[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            say(str(finding))

    files = tuple(sorted(weights_files(recipe).values())) if recipe else ()
    query = NodeQuery(
        storage=settings.storage,
        home=str(settings.home),
        token=secrets.token_hex(4),
        data=recipe.data.path if recipe else None,
        splits=(recipe.data.train_split, recipe.data.evaluation_split) if recipe else (),
        reading=recipe.data.reading if recipe else None,
        weights=files,
    )
    own = {name: (query, name) for name in nodes.names}
    reports: list[NodeReport] = list(nodes.each(node.report, own).values())
    add(checks.devices(reports, recipe))
    add(checks.versions(reports))
    add(checks.clocks(_skews(nodes)))
    seen = nodes.each(node.sees, dict.fromkeys(nodes.names, (query, nodes.names)))
    nodes.each(node.clear, own)
    add(checks.storage(reports, seen, without_credentials(settings.storage)))
    add(checks.disks(reports))
    add([_tracking(settings)])
    measured = None
    if recipe:
        add(checks.data(reports, recipe.data.path))
        add(checks.weights(reports, files))
        measured, finding = _needs(recipe, settings)
        if measured is not None:
            finding = checks.memory(reports, recipe, measured.state_bytes, measured.activation_bytes)
        add([finding] if finding else [])
    reduced, problem = None, None
    try:
        reduced = nodes.network()
    except Exception as error:  # whatever gloo, NCCL or a node that vanished raise is the finding
        problem = one_line(error)
    add([checks.network(reduced, problem, measured.gradient_bytes if measured else None)])
    return findings


def _skews(nodes: Nodes) -> dict[str, tuple[float, float]]:
    best: dict[str, tuple[float, float]] = {}
    for _ in range(CLOCK_TRIES):
        for name in nodes.names:
            began = time.time()
            there = nodes.each(node.clock, {name: ()})[name]
            ended = time.time()
            skew, uncertainty = there - (began + ended) / 2, (ended - began) / 2
            if name not in best or uncertainty < best[name][1]:
                best[name] = (skew, uncertainty)
    return best


def _tracking(settings: Settings) -> Finding:
    store = Store.at(settings.home, settings.tracking_uri)
    try:
        store.client().search_experiments(max_results=1)
    except Exception as error:  # MLflow's, requests' and the database's all mean that it does not answer
        return checks.tracking(store.public_uri, reason_of(error)[:200])
    return checks.tracking(store.public_uri, None)


def _needs(recipe: Recipe, settings: Settings) -> tuple[Any, Finding | None]:
    # Two images: some losses compare images of a batch.
    from mergevq_platform.operations import planning

    find_run = places_of_runs(settings.home, lambda: Store.at(settings.home, settings.tracking_uri))
    try:
        return planning.measure(recipe, micro_batch=2, repeats=1, find_run=find_run), None
    except InputError as error:
        return None, Finding("fail", "recipe", str(error), "")
