"""Cheap measurements of this process and its GPU, to go beside the metrics of a step."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import psutil


class SystemSampler:
    """Sample memory, processor use and, where there is one, the GPU.

    Children (data workers) count towards memory and processor. `cuda_index` is PyTorch's index of the device.
    A sample takes milliseconds: take one where metrics are logged, not in every step.
    """

    def __init__(self, cuda_index: int | None = None) -> None:
        self._process = psutil.Process()
        self._cpu_before = _cpu_seconds(self._family())
        self._wall_before = time.monotonic()
        self._cuda = _cuda(cuda_index)
        self._nvml = _nvml_handle(self._cuda, cuda_index)

    def sample(self) -> dict[str, float]:
        """The measurements since the last call: GiB, cores in use, and fractions (0 to 1) of the GPU."""
        family = self._family()
        cpu, wall = _cpu_seconds(family), time.monotonic()
        share = (cpu - self._cpu_before) / max(wall - self._wall_before, 1e-6)
        self._cpu_before, self._wall_before = cpu, wall
        values = {"system/memory_gib": _memory_gib(family), "system/cpu_cores": max(share, 0.0)}
        if self._cuda is not None:
            torch, device = self._cuda
            values["system/gpu_memory_gib"] = torch.cuda.memory_allocated(device) / 2**30
            values["system/gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            free, total = torch.cuda.mem_get_info(device)
            values["system/gpu_memory_used_fraction"] = 1 - free / total
        if self._nvml is not None:
            nvml, handle = self._nvml
            with contextlib.suppress(nvml.NVMLError):
                values["system/gpu_utilization"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        return values

    def _family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._process, *descendants(self._process)]
        return [self._process]


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All processes below one."""
    # Linux lists the children of each thread; psutil would look at every process of the machine.
    if not Path("/proc/thread-self/children").exists():
        return process.children(recursive=True)
    found, parents = [], [process.pid]
    while parents:
        children = _children(parents.pop())
        parents += children
        for pid in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, thread.read_text().split())
    return found


def _memory_gib(family: list[psutil.Process]) -> float:
    total = 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 2**30


def _cpu_seconds(family: list[psutil.Process]) -> float:
    total = 0.0
    for process in family:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _cuda(index: int | None) -> tuple[Any, int] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return torch, torch.cuda.current_device() if index is None else index


def _nvml_handle(cuda: tuple[Any, int] | None, index: int | None) -> tuple[Any, Any] | None:
    # NVML numbers devices as the driver does; the UUID says which one PyTorch means.
    if cuda is None:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    torch, device = cuda
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except (pynvml.NVMLError, AttributeError):  # no driver library; a PyTorch without UUIDs (ROCm)
        return None
