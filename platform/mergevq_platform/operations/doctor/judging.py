"""What the nodes' answers mean: each finding ok, warn or fail, with what to do. No node is asked here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mergevq_platform.operations.bandwidth import AllReduce
from mergevq_platform.operations.doctor.node import Answer
from mergevq_platform.recipe import Recipe

Level = Literal["ok", "warn", "fail"]

CLOCK_WARN_SECONDS, CLOCK_FAIL_SECONDS = 1.0, 60.0
DISK_WARN_BYTES, DISK_FAIL_BYTES = 10 * 2**30, 1 * 2**30
SHARED_MEMORY_BYTES = 1 * 2**30
SLOW_GBPS = 1.0
MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    level: Level
    subject: str
    message: str
    advice: str = ""

    def __str__(self) -> str:
        """`warn  clocks: …: what to do`."""
        return f"{self.level:5} {self.subject}: {self.message}" + (f"; {self.advice}" if self.advice else "")


def summary(findings: Sequence[Finding], *, say: Callable[[str], None]) -> int:
    """Say what it comes to; returns the exit status, 1 if anything fails."""
    fails, warns = (sum(finding.level == level for finding in findings) for level in ("fail", "warn"))
    if fails:
        say(f"{fails} to put right before a run" + (f", {warns} to look at" if warns else ""))
    else:
        say(f"ready, {warns} to look at" if warns else "ready")
    return 1 if fails else 0


def devices(answers: Sequence[Answer], recipe: Recipe | None) -> Iterator[Finding]:
    """What there is to compute with, against what the recipe asks."""
    for node in answers:
        if "devices" in node.problems:
            yield Finding(
                "fail",
                "devices",
                f"{node.name}: {node.problems['devices']}",
                "install a fitting driver or torch",
            )
        gpus = ", ".join(f"{name} ({total / 2**30:.0f} GiB)" for name, total, _ in node.gpus) or "no GPU"
        yield Finding(
            "ok",
            "devices",
            f"{node.name}: {node.cores:g} cores, {node.memory_bytes / 2**30:.1f} GiB, {gpus}"
            + (f", driver {node.driver}" if node.driver else ""),
        )
    if len({node.driver for node in answers if node.gpus}) > 1:
        drivers = ", ".join(f"{node.name} {node.driver}" for node in answers if node.gpus)
        yield Finding("warn", "devices", f"drivers differ ({drivers})", "install the same on all nodes")
    if recipe is None:
        return
    want, device = recipe.cluster.workers, recipe.cluster.device
    gpus_there = sum(len(node.gpus) for node in answers)
    if device == "cuda" and gpus_there < want:
        yield Finding(
            "fail",
            "devices",
            f"the recipe asks for {want} GPUs and there are {gpus_there}",
            f"set cluster.workers={max(1, gpus_there)} or cluster.device=cpu, or add nodes",
        )
    elif device != "cuda" and gpus_there < want:
        room = sum(int(node.cores // recipe.cluster.cpus_per_worker) for node in answers)
        if room < want:
            yield Finding(
                "fail",
                "devices",
                f"the recipe asks for {want} workers of {recipe.cluster.cpus_per_worker} CPUs and there is room for {room}",
                f"set cluster.workers={max(1, room)}, or add nodes",
            )
        elif device == "auto":
            yield Finding(
                "warn",
                "devices",
                f"{want} workers will train on CPUs",
                "add GPUs, or set cluster.device=cpu to say so",
            )


def versions(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Software that must be alike."""
    first = answers[0]
    for name, there in sorted(first.versions.items()):
        other = next((node for node in answers if node.versions.get(name) != there), None)
        if other is not None:
            yield Finding(
                "fail" if name in ("python", "ray") else "warn",
                "versions",
                f"{name} is {there} on {first.name} and {other.versions.get(name, 'missing')} on {other.name}",
                "use one image on all nodes",
            )
            return
    told = ", ".join(f"{name} {first.versions[name]}" for name in ("python", "ray", "torch"))
    yield Finding("ok", "versions", f"{told}{' everywhere' if len(answers) > 1 else ''}")


def clocks(skews: dict[str, tuple[float, float]]) -> Iterator[Finding]:
    """`skews`: node -> (seconds ahead of the driver, uncertainty)."""
    name, (skew, uncertainty) = max(skews.items(), key=lambda item: abs(item[1][0]) - item[1][1])
    surely = max(0.0, abs(skew) - uncertainty)
    level: Level = "fail" if surely > CLOCK_FAIL_SECONDS else "warn" if surely > CLOCK_WARN_SECONDS else "ok"
    yield Finding(
        level,
        "clocks",
        f"{name} is {skew:+.3f} s from the driver's (± {uncertainty:.3f} s), the most of {len(skews)}",
        ""
        if level == "ok"
        else "run chrony or ntpd on every node: tokens of stores expire and times in MLflow mislead",
    )


def storage(answers: Sequence[Answer], seen: dict[str, list[str]], place: str) -> Iterator[Finding]:
    """Every node writes, and every node sees what all others wrote."""
    bad = [node for node in answers if not node.wrote]
    for node in bad:
        yield Finding(
            "fail",
            "storage",
            f"{node.name} cannot write to {place}: {node.problems.get('storage', 'no reason given')}",
            "mount it there, or choose another --storage or MERGEVQ_HOME",
        )
    wrote = {node.name for node in answers if node.wrote}
    for name, found in seen.items():
        missing = sorted(wrote - set(found))
        if missing and name in wrote:
            yield Finding(
                "fail",
                "storage",
                f"{name} does not see what {', '.join(missing)} wrote to {place}: it is not one shared place",
                "use NFS or s3:// (--storage), not a disk of each node",
            )
            return
    if not bad:
        yield Finding("ok", "storage", f"{place}: written and seen from {len(answers)} node(s)")


def disks(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Room on the nodes' own disks."""
    worst: dict[str, tuple[int, str]] = {}
    for node in answers:
        for label, free in node.disk_free_bytes.items():
            worst[label] = min(worst.get(label, (free, node.name)), (free, node.name))
    for label, (free, name) in worst.items():
        if label == "shared memory":
            level: Level = "ok" if free >= SHARED_MEMORY_BYTES else "warn"
            advice = (
                ""
                if level == "ok"
                else "start containers with more (--shm-size, an emptyDir of medium Memory): loader processes need it"
            )
        else:
            level = "fail" if free < DISK_FAIL_BYTES else "warn" if free < DISK_WARN_BYTES else "ok"
            advice = "" if level == "ok" else "make room, or move MERGEVQ_HOME"
        yield Finding(level, "disk", f"{label}: {free / 2**30:.1f} GiB free on {name}", advice)


def data(answers: Sequence[Answer], path: str) -> Iterator[Finding]:
    """The same pictures everywhere."""
    for node in answers:
        if "data" in node.problems:
            yield Finding(
                "fail",
                "data",
                f"{node.name}: {node.problems['data']}",
                "put the pictures where every node sees them",
            )
            return
    for split, fingerprint in answers[0].fingerprints.items():
        other = next((node for node in answers if node.fingerprints.get(split) != fingerprint), None)
        if other is not None:
            yield Finding(
                "fail",
                "data",
                f"{path}, {split}: {other.name} holds other pictures than {answers[0].name} (fingerprints differ)",
                "copy the same shards everywhere, or read them from one place",
            )
            return
    splits = ", ".join(answers[0].fingerprints)
    yield Finding("ok", "data", f"{path} ({splits}): the same on {len(answers)} node(s)")


def weights(answers: Sequence[Answer], files: Sequence[str]) -> Iterator[Finding]:
    """Weights files that the recipe names: there, and the same."""
    if not files:
        return
    for node in answers:
        missing = [file for file in files if file not in node.weights]
        if missing:
            yield Finding(
                "fail",
                "weights",
                f"{node.name} has no {missing[0]}",
                "put it there, by an absolute path that all nodes share",
            )
            return
        if node.weights != answers[0].weights:
            yield Finding(
                "fail",
                "weights",
                f"{node.name} has other weights than {answers[0].name}",
                "copy the same files everywhere",
            )
            return
    yield Finding("ok", "weights", f"{len(files)} file(s), the same on {len(answers)} node(s)")


def network(measured: AllReduce | None, problem: str | None, gradient_bytes: int | None) -> Iterator[Finding]:
    """The measured all-reduce, and what a step's gradients take over it."""
    if measured is None:
        yield Finding(
            "fail",
            "network",
            f"workers cannot add up a tensor between them: {problem}",
            "open all ports between nodes; where nodes have several interfaces set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME",
        )
        return
    text = (
        f"{measured.backend} all-reduce of 32 MiB among {measured.workers}: {measured.gbps:.1f} Gbit/s, "
        f"{measured.latency_seconds * 1e3:.2f} ms a call"
    )
    if gradient_bytes:
        ring = 2 * (measured.workers - 1) / measured.workers
        milliseconds = ring * gradient_bytes / measured.bytes_per_second * 1e3
        text += f"; a step's gradients ({gradient_bytes / 2**20:.1f} MiB) take {milliseconds:.1f} ms"
    slow = measured.gbps < SLOW_GBPS
    yield Finding(
        "warn" if slow else "ok",
        "network",
        text,
        "slower than a 1 Gbit/s link: look for the interface in use, or accumulate more (smaller cluster.workers)"
        if slow
        else "",
    )


def tracking(place: str, problem: str | None) -> Finding:
    """The tracking store."""
    if problem is None:
        return Finding("ok", "tracking", f"{place} answers")
    return Finding(
        "warn",
        "tracking",
        f"{place}: {problem}",
        "a run goes on without it and `mergevq sync` delivers later; check MLFLOW_TRACKING_URI, its user and password",
    )


def memory(answers: Sequence[Answer], recipe: Recipe, state_bytes: int, activation_bytes: float) -> Finding:
    """The recipe's need against the smallest device (or the memory that a CPU worker gets)."""
    micro = recipe.largest_micro_batch
    need = state_bytes + activation_bytes * micro
    on_gpu = recipe.cluster.device == "cuda" or (
        recipe.cluster.device == "auto" and any(n.gpus for n in answers)
    )
    if on_gpu and any(node.gpus for node in answers):
        room, what = min((free, f"{name} on {node.name}") for node in answers for name, _, free in node.gpus)
        need += 1e9
    else:
        per_node = -(-recipe.cluster.workers // len(answers))
        room, what = min((node.memory_free_bytes // per_node, f"a worker on {node.name}") for node in answers)
        need += 0.8e9  # an interpreter with torch and Ray
    level: Level = "fail" if need > room else "warn" if need > MEMORY_SHARE * room else "ok"
    fits = (
        int((room * MEMORY_SHARE - (need - activation_bytes * micro)) // activation_bytes)
        if activation_bytes
        else 0
    )
    return Finding(
        level,
        "memory",
        f"about {need / 2**30:.2f} GiB at micro_batch {micro}, {room / 2**30:.2f} GiB free for {what}",
        ""
        if level == "ok"
        else f"lower micro_batch to {fits}"
        if fits > 0
        else "take larger devices: it does not fit at any micro_batch",
    )
