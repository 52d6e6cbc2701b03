"""Medians of interleaved runs, and peaks of memory."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MEBIBYTE = 1024**2
MATRIX_SIDE, COPY_BYTES = 8192, 1 << 30


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, taken in turn so that a machine that slows down slows all of them."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            synchronise()
            began = time.perf_counter()
            way()
            synchronise()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    """The device measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function(*arguments)` in a process of its own, with a high-water mark of memory of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def process_peak_bytes() -> int:
    """The most memory that this process has held so far: on the GPU as allocated, on the CPU as resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_bytes(work: Callable[[], Any]) -> int:
    """Extra memory that `work` needs at its peak: on the GPU as allocated, on the CPU as resident (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    # The high-water mark starts again from what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_bytes()
    work()
    return _high_water_bytes() - before


def _high_water_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def machine_rates() -> tuple[float, float]:
    """(FLOP/s of a bfloat16 matrix product, bytes/s read and written by a copy) of the device, on random data."""
    side = MATRIX_SIDE if torch.cuda.is_available() else 2048
    left, right = (torch.randn(side, side, device=device()).bfloat16() for _ in range(2))
    size = COPY_BYTES if torch.cuda.is_available() else COPY_BYTES // 8
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    times = interleaved({"product": lambda: left @ right, "copy": lambda: target.copy_(source)}, rounds=9)
    return 2 * side**3 / times["product"], 2 * size / times["copy"]
