"""The report of one node. Everything here runs on that node and returns plain values."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.data import Reading
from mergevq_platform.data.hub import is_at_hand
from mergevq_platform.storage import checkpoints

NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class NodeQuery:
    """The query that travels to every node."""

    storage: str
    home: str
    token: str  # names this examination's probe files
    data: str | None = None
    splits: tuple[str, ...] = ()
    reading: Reading | None = None
    weights: tuple[str, ...] = ()  # files that the recipe names


@dataclass(frozen=True)
class NodeReport:
    """Devices, versions and views of a node; `problems`: what could not be examined, by subject."""

    name: str
    versions: dict[str, str]
    cores: float  # that its processes may use
    memory_bytes: int  # of the machine or its container
    memory_free_bytes: int
    gpus: list[tuple[str, int, int]] = field(default_factory=list)  # name, bytes, free bytes
    driver: str | None = None
    disk_free_bytes: dict[str, int] = field(default_factory=dict)  # home, temporary, shared memory
    fingerprints: dict[str, str] = field(default_factory=dict)  # split -> fingerprint
    weights: dict[str, str] = field(default_factory=dict)  # file -> sha256
    unfetched: bool = False  # the data are on the Hub, and not in this node's cache yet
    wrote: bool = False
    problems: dict[str, str] = field(default_factory=dict)


def report(query: NodeQuery, name: str) -> NodeReport:
    """Examine this node and leave a probe file in the storage (`sees` looks for all of them, `clear` removes this node's)."""
    import psutil
    import torch

    problems: dict[str, str] = {}
    gpus = [
        (torch.cuda.get_device_name(index), total, free)
        for index in range(torch.cuda.device_count())
        for free, total in [torch.cuda.mem_get_info(index)]
    ]
    if not gpus and NVIDIA.is_file():
        problems["devices"] = (
            "there is an NVIDIA device, but PyTorch cannot use it (driver or a CPU-only torch)"
        )
    fingerprints: dict[str, str] = {}
    unfetched = query.data is not None and not is_at_hand(query.data)
    for split in query.splits if not unfetched else ():
        try:
            from mergevq_platform.data import open_dataset

            assert query.data is not None
            fingerprints[split] = open_dataset(query.data, split, query.reading).fingerprint
        except (InputError, OSError) as error:
            problems["data"] = str(error)
    weights: dict[str, str] = {}
    for file in query.weights:
        try:
            weights[file] = checkpoints.sha256(Path(file))
        except OSError as error:
            problems["weights"] = f"{file}: {error.strerror}"
    wrote = False
    try:
        filesystem, path = checkpoints.open_storage(query.storage)
        filesystem.create_dir(path, recursive=True)
        with filesystem.open_output_stream(f"{path}/{_probe(query, name)}") as stream:
            stream.write(name.encode())
        wrote = True
    except (InputError, OSError) as error:
        problems["storage"] = " ".join(str(error).split())
    memory = psutil.virtual_memory()
    limit = _container_memory()
    return NodeReport(
        name=name,
        versions=versions(),
        cores=float(len(os.sched_getaffinity(0))),
        memory_bytes=min(memory.total, limit or memory.total),
        memory_free_bytes=memory.available,
        gpus=gpus,
        driver=_driver(),
        disk_free_bytes=_disks(query),
        fingerprints=fingerprints,
        weights=weights,
        unfetched=unfetched,
        wrote=wrote,
        problems=problems,
    )


def clock() -> float:
    """Seconds since 1970 on this node; a function of ours, since Ray makes no task of a built-in one."""
    return time.time()


def sees(query: NodeQuery, names: Sequence[str]) -> list[str]:
    """The nodes of `names` whose probe files this node finds in the storage, with their contents."""
    found = []
    try:
        filesystem, path = checkpoints.open_storage(query.storage)
        for name in names:
            with filesystem.open_input_stream(f"{path}/{_probe(query, name)}") as stream:
                if stream.read().decode() == name:
                    found.append(name)
    except (InputError, OSError):
        pass
    return found


def clear(query: NodeQuery, name: str) -> None:
    """Remove this node's probe file."""
    try:
        filesystem, path = checkpoints.open_storage(query.storage)
        filesystem.delete_file(f"{path}/{_probe(query, name)}")
    except (InputError, OSError):
        pass


def versions() -> dict[str, str]:
    """Versions of the software that must be the same on all nodes."""
    import importlib.metadata

    import torch

    found = {"python": ".".join(map(str, sys.version_info[:2])), "torch": torch.__version__}
    for name in ("ray", "numpy", "timm", "pyarrow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def host_name() -> str:
    """This machine's name."""
    return socket.gethostname()


def _probe(query: NodeQuery, name: str) -> str:
    return f".mergevq-doctor-{query.token}-{name}"


def _disks(query: NodeQuery) -> dict[str, int]:
    folders = {"home": Path(query.home), "temporary": Path("/tmp"), "shared memory": Path("/dev/shm")}
    return {
        label: shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        for label, folder in folders.items()
    }


def _driver() -> str | None:
    words = NVIDIA.read_text().split() if NVIDIA.is_file() else []
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _container_memory() -> int | None:
    path = Path("/sys/fs/cgroup/memory.max")
    if path.is_file() and (text := path.read_text().strip()).isdigit():
        return int(text)
    return None
