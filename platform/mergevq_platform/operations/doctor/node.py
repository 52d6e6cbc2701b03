"""What one node is and sees. Everything here runs on that node, and answers in plain values."""

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
from mergevq_platform.storage import checkpoints


@dataclass(frozen=True)
class Question:
    """What every node is asked; travels there."""

    storage: str
    home: str
    token: str  # names this visit's probe files
    data: str | None = None
    splits: tuple[str, ...] = ()
    reading: Reading | None = None
    weights: tuple[str, ...] = ()  # files that the recipe names


@dataclass(frozen=True)
class Answer:
    """What a node found; `problems` are what could not be asked, by subject."""

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
    wrote: bool = False
    problems: dict[str, str] = field(default_factory=dict)


def answer(question: Question, name: str) -> Answer:
    """Examine this node and leave a probe file in the storage (`sees` looks for everyone's, `clear` removes them)."""
    import psutil
    import torch

    problems: dict[str, str] = {}
    gpus: list[tuple[str, int, int]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append((torch.cuda.get_device_name(index), total, free))
    if not gpus and _has_nvidia():
        problems["devices"] = (
            "there is an NVIDIA device, but PyTorch cannot use it (driver or a CPU-only torch)"
        )
    fingerprints: dict[str, str] = {}
    for split in question.splits:
        try:
            from mergevq_platform.data import open_dataset

            assert question.data is not None
            fingerprints[split] = open_dataset(question.data, split, question.reading).fingerprint
        except (InputError, OSError) as error:
            problems["data"] = str(error)
    weights: dict[str, str] = {}
    for file in question.weights:
        try:
            weights[file] = checkpoints.sha256(Path(file))
        except OSError as error:
            problems["weights"] = f"{file}: {error.strerror}"
    wrote = False
    try:
        filesystem, path = checkpoints.open_storage(question.storage)
        filesystem.create_dir(path, recursive=True)
        with filesystem.open_output_stream(f"{path}/{_probe(question, name)}") as stream:
            stream.write(name.encode())
        wrote = True
    except (InputError, OSError) as error:
        problems["storage"] = " ".join(str(error).split())
    memory = psutil.virtual_memory()
    limit = _container_memory()
    return Answer(
        name=name,
        versions=versions(),
        cores=float(len(os.sched_getaffinity(0))),
        memory_bytes=min(memory.total, limit or memory.total),
        memory_free_bytes=memory.available,
        gpus=gpus,
        driver=_driver(),
        disk_free_bytes=_disks(question),
        fingerprints=fingerprints,
        weights=weights,
        wrote=wrote,
        problems=problems,
    )


def clock() -> float:
    """Seconds since 1970 on this node; a function of ours, since Ray makes no task of a built-in one."""
    return time.time()


def sees(question: Question, names: Sequence[str]) -> list[str]:
    """Those of `names` whose probe files this node finds in the storage, with what they wrote."""
    found = []
    try:
        filesystem, path = checkpoints.open_storage(question.storage)
        for name in names:
            with filesystem.open_input_stream(f"{path}/{_probe(question, name)}") as stream:
                if stream.read().decode() == name:
                    found.append(name)
    except (InputError, OSError):
        pass
    return found


def clear(question: Question, name: str) -> None:
    """Remove this node's probe file."""
    try:
        filesystem, path = checkpoints.open_storage(question.storage)
        filesystem.delete_file(f"{path}/{_probe(question, name)}")
    except (InputError, OSError):
        pass


def versions() -> dict[str, str]:
    """Of what must be alike on all nodes."""
    import importlib.metadata

    import torch

    names = ("ray", "numpy", "timm", "pyarrow")
    found = {"python": ".".join(map(str, sys.version_info[:2])), "torch": torch.__version__}
    for name in names:
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


def _probe(question: Question, name: str) -> str:
    return f".mergevq-doctor-{question.token}-{name}"


def _disks(question: Question) -> dict[str, int]:
    places = {"home": Path(question.home), "temporary": Path("/tmp"), "shared memory": Path("/dev/shm")}
    found = {}
    for label, place in places.items():
        while not place.exists() and place != place.parent:
            place = place.parent
        found[label] = shutil.disk_usage(place).free
    return found


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    if not path.is_file():
        return None
    words = path.read_text().split()
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), None)


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").is_file()


def _container_memory() -> int | None:
    path = Path("/sys/fs/cgroup/memory.max")
    if path.is_file() and (text := path.read_text().strip()).isdigit():
        return int(text)
    return None
