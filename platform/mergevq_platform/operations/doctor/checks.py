"""Findings from the nodes' reports: each ok, warn or fail, with a fix. No node is queried here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mergevq_platform.operations.bandwidth import AllReduce
from mergevq_platform.operations.doctor.node import NodeReport
from mergevq_platform.recipe import Recipe

Level = Literal["ok", "warn", "fail"]

GIB = 2**30
CLOCK_WARN_SECONDS, CLOCK_FAIL_SECONDS = 1.0, 60.0
DISK_WARN_BYTES, DISK_FAIL_BYTES = 10 * GIB, 1 * GIB
SHARED_MEMORY_BYTES = 1 * GIB
SLOW_GBPS = 1.0
MEMORY_SHARE = 0.9
CUDA_CONTEXT_BYTES = 1e9
INTERPRETER_BYTES = 0.8e9  # with torch and Ray


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    level: Level
    subject: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        """`warn  clocks: …; what to do`."""
        return f"{self.level:5} {self.subject}: {self.message}" + (f"; {self.fix}" if self.fix else "")


ok, warn, fail = (partial(Finding, level) for level in ("ok", "warn", "fail"))


def _worse(value: float, warn_at: float, fail_at: float) -> Level:
    """The level of a value that is the worse the larger it is."""
    return "fail" if value > fail_at else "warn" if value > warn_at else "ok"


def summary(findings: Sequence[Finding], *, say: Callable[[str], None]) -> int:
    """Say how many findings need a fix; returns the exit status, 1 if any fails."""
    fails, warns = (sum(finding.level == level for finding in findings) for level in ("fail", "warn"))
    look = f", {warns} to look at" if warns else ""
    say(f"{fails} to fix before a run{look}" if fails else f"ready{look}")
    return 1 if fails else 0


def devices(reports: Sequence[NodeReport], recipe: Recipe | None) -> Iterator[Finding]:
    """Cores, memory and GPUs of every node, against the needs of the recipe."""
    subject = "devices"
    for node in reports:
        if problem := node.problems.get("devices"):
            yield fail(subject, f"{node.name}: {problem}", "install a fitting driver or torch")
        gpus = ", ".join(f"{name} ({total / GIB:.0f} GiB)" for name, total, _ in node.gpus) or "no GPU"
        driver = f", driver {node.driver}" if node.driver else ""
        yield ok(
            subject, f"{node.name}: {node.cores:g} cores, {node.memory_bytes / GIB:.1f} GiB, {gpus}{driver}"
        )
    if len({node.driver for node in reports if node.gpus}) > 1:
        drivers = ", ".join(f"{node.name} {node.driver}" for node in reports if node.gpus)
        yield warn(subject, f"drivers differ ({drivers})", "install the same on all nodes")
    there = sum(len(node.gpus) for node in reports)
    if recipe is None or there >= recipe.cluster.workers:
        return
    wanted, cpus = recipe.cluster.workers, recipe.cluster.cpus_per_worker
    room = sum(int(node.cores // cpus) for node in reports)
    if recipe.cluster.device == "cuda":
        fix = f"set cluster.workers={max(1, there)} or cluster.device=cpu, or add nodes"
        yield fail(subject, f"the recipe asks for {wanted} GPUs and there are {there}", fix)
    elif room < wanted:
        yield fail(
            subject,
            f"the recipe asks for {wanted} workers of {cpus} CPUs and there is room for {room}",
            f"set cluster.workers={max(1, room)}, or add nodes",
        )
    elif recipe.cluster.device == "auto":
        fix = "add GPUs, or set cluster.device=cpu to say so"
        yield warn(subject, f"{wanted} workers will train on CPUs", fix)


def versions(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    """Software that must be the same on all nodes."""
    first = reports[0]
    for name, there in sorted(first.versions.items()):
        other = next((node for node in reports if node.versions.get(name) != there), None)
        if other is not None:
            level: Level = "fail" if name in ("python", "ray") else "warn"
            found = other.versions.get(name, "missing")
            message = f"{name} is {there} on {first.name} and {found} on {other.name}"
            yield Finding(level, "versions", message, "use one image on all nodes")
            return
    told = ", ".join(f"{name} {first.versions[name]}" for name in ("python", "ray", "torch"))
    yield ok("versions", f"{told}{' everywhere' if len(reports) > 1 else ''}")


def clocks(skews: dict[str, tuple[float, float]]) -> Iterator[Finding]:
    """The clock that is furthest from the driver's. `skews`: node -> (seconds ahead of it, uncertainty)."""
    name, (skew, uncertainty) = max(skews.items(), key=lambda item: abs(item[1][0]) - item[1][1])
    level = _worse(abs(skew) - uncertainty, CLOCK_WARN_SECONDS, CLOCK_FAIL_SECONDS)
    message = f"{name} is {skew:+.3f} s from the driver's (± {uncertainty:.3f} s), the most of {len(skews)}"
    fix = "run chrony or ntpd on every node: tokens of stores expire and times in MLflow mislead"
    yield Finding(level, "clocks", message, "" if level == "ok" else fix)


def storage(reports: Sequence[NodeReport], seen: dict[str, list[str]], location: str) -> Iterator[Finding]:
    """Whether every node writes, and sees what all others wrote (`seen`: node -> nodes)."""
    bad = [node for node in reports if not node.wrote]
    for node in bad:
        yield fail(
            "storage",
            f"{node.name} cannot write to {location}: {node.problems.get('storage', 'no reason given')}",
            "mount it there, or choose another --storage or MERGEVQ_HOME",
        )
    wrote = {node.name for node in reports if node.wrote}
    for name in sorted(wrote & seen.keys()):
        if missing := sorted(wrote - set(seen[name])):
            yield fail(
                "storage",
                f"{name} does not see what {', '.join(missing)} wrote to {location}: it is not one shared place",
                "use NFS or s3:// (--storage), not a disk of each node",
            )
            return
    if not bad:
        yield ok("storage", f"{location}: written and seen from {len(reports)} node(s)")


def disks(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    """Free space on the nodes' own disks: of each kind, where it is least."""
    least: dict[str, tuple[int, str]] = {}
    for node in reports:
        for label, free in node.disk_free_bytes.items():
            least[label] = min(least.get(label, (free, node.name)), (free, node.name))
    for label, (free, name) in least.items():
        level = _worse(-free, -DISK_WARN_BYTES, -DISK_FAIL_BYTES)
        fix = "free space, or move MERGEVQ_HOME"
        if label == "shared memory":
            level = "ok" if free >= SHARED_MEMORY_BYTES else "warn"
            fix = "start containers with more (--shm-size, an emptyDir of medium Memory): loader processes need it"
        message = f"{label}: {free / GIB:.1f} GiB free on {name}"
        yield Finding(level, "disk", message, "" if level == "ok" else fix)


def data(reports: Sequence[NodeReport], path: str) -> Iterator[Finding]:
    """Whether every node reads the same images."""
    first = reports[0]
    if unfetched := [node.name for node in reports if node.unfetched]:
        message = f"{path} is not in the Hub's cache of {', '.join(unfetched)} yet: a training fetches it there first"
        yield warn("data", message, "HF_HOME says where; on a disk that all nodes share it is fetched once")
        return
    for node in reports:
        if problem := node.problems.get("data"):
            yield fail("data", f"{node.name}: {problem}", "put the images where every node sees them")
            return
    for split, fingerprint in first.fingerprints.items():
        for node in reports:
            if node.fingerprints.get(split) != fingerprint:
                differs = f"{node.name} holds other images than {first.name} (fingerprints differ)"
                fix = "copy the same shards everywhere, or read them from one place"
                yield fail("data", f"{path}, {split}: {differs}", fix)
                return
    yield ok("data", f"{path} ({', '.join(first.fingerprints)}): the same on {len(reports)} node(s)")


def weights(reports: Sequence[NodeReport], files: Sequence[str]) -> Iterator[Finding]:
    """Whether the weights files that the recipe names are there, and the same."""
    if not files:
        return
    for node in reports:
        if missing := [file for file in files if file not in node.weights]:
            fix = "put it there, by an absolute path that all nodes share"
            yield fail("weights", f"{node.name} has no {missing[0]}", fix)
            return
        if node.weights != reports[0].weights:
            message = f"{node.name} has other weights than {reports[0].name}"
            yield fail("weights", message, "copy the same files everywhere")
            return
    yield ok("weights", f"{len(files)} file(s), the same on {len(reports)} node(s)")


def network(measured: AllReduce | None, problem: str | None, gradient_bytes: int | None) -> Finding:
    """The measured all-reduce, and what a step's gradients take over it."""
    if measured is None:
        return fail(
            "network",
            f"workers cannot add up a tensor between them: {problem}",
            "open all ports between nodes; where nodes have several interfaces set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME",
        )
    text = (
        f"{measured.backend} all-reduce of 32 MiB among {measured.workers}: {measured.gbps:.1f} Gbit/s, "
        f"{measured.latency_seconds * 1e3:.2f} ms a call"
    )
    if gradient_bytes:
        ring = 2 * (measured.workers - 1) / measured.workers
        milliseconds = ring * gradient_bytes / measured.bytes_per_second * 1e3
        text += f"; a step's gradients ({gradient_bytes / 2**20:.1f} MiB) take {milliseconds:.1f} ms"
    if measured.gbps >= SLOW_GBPS:
        return ok("network", text)
    fix = "slower than a 1 Gbit/s link: look for the interface in use, or accumulate more (smaller cluster.workers)"
    return warn("network", text, fix)


def tracking(location: str, problem: str | None) -> Finding:
    """Whether the tracking store answers."""
    if problem is None:
        return ok("tracking", f"{location} answers")
    fix = "a run goes on without it and `mergevq sync` delivers later; check MLFLOW_TRACKING_URI, its user and password"
    return warn("tracking", f"{location}: {problem}", fix)


def memory(
    reports: Sequence[NodeReport], recipe: Recipe, state_bytes: int, activation_bytes: float
) -> Finding:
    """The recipe's need against the smallest device (on CPUs: against what a worker gets of its node)."""
    micro = recipe.largest_micro_batch
    gpus = [(free, f"{name} on {node.name}") for node in reports for name, _, free in node.gpus]
    if gpus and recipe.cluster.device != "cpu":
        room, what = min(gpus)
        fixed = state_bytes + CUDA_CONTEXT_BYTES
    else:
        per_node = -(-recipe.cluster.workers // len(reports))
        room, what = min((node.memory_free_bytes // per_node, f"a worker on {node.name}") for node in reports)
        fixed = state_bytes + INTERPRETER_BYTES
    need = fixed + activation_bytes * micro
    level = _worse(need, MEMORY_SHARE * room, room)
    message = f"about {need / GIB:.2f} GiB at micro_batch {micro}, {room / GIB:.2f} GiB free for {what}"
    fits = int((room * MEMORY_SHARE - fixed) // activation_bytes) if activation_bytes else 0
    fix = (
        f"lower micro_batch to {fits}"
        if fits > 0
        else "take larger devices: it does not fit at any micro_batch"
    )
    return Finding(level, "memory", message, "" if level == "ok" else fix)
