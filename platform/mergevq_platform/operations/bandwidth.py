"""Bandwidth between workers: a measured all-reduce, over gloo or NCCL."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass

MESSAGE_BYTES = 32 * 1024**2
ROUNDS = 5
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class AllReduce:
    """Measured times of an all-reduce among `workers`."""

    workers: int
    backend: str
    seconds: float  # of MESSAGE_BYTES, median
    latency_seconds: float  # of one number, median

    @property
    def bytes_per_second(self) -> float:
        """Bytes that every worker sends and receives in a second: a ring moves 2 (w - 1) / w of the message over each link."""
        moved = 2 * (self.workers - 1) / self.workers * MESSAGE_BYTES
        return moved / max(self.seconds - self.latency_seconds, 1e-9)

    @property
    def gbps(self) -> float:
        """The same in gigabits per second, as links are sold."""
        return self.bytes_per_second * 8 / 1e9


def measure(rank: int, workers: int, address: str, port: int, backend: str = "gloo") -> AllReduce:
    """Join a group of `workers` at `address` and measure; every rank calls it. Leaves no process group behind."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(
        backend,
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=workers,
        timeout=datetime.timedelta(seconds=TIMEOUT_SECONDS),
    )
    try:
        large, small = (torch.ones(size, device=device) for size in (MESSAGE_BYTES // 4, 1))
        seconds = []
        for tensor in (large, small):
            times = []
            for _ in range(ROUNDS + 1):
                dist.barrier()
                began = time.perf_counter()
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
                if backend == "nccl":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            seconds.append(statistics.median(times[1:]))  # the first meets the connections
        return AllReduce(workers, backend, seconds[0], seconds[1])
    finally:
        dist.destroy_process_group()


def between_processes(workers: int = 2) -> AllReduce:
    """The same between processes of this machine."""
    port = free_port("127.0.0.1")
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        waiting = [pool.apply_async(_on_loopback, (rank, workers, port)) for rank in range(workers)]
        answers = [answer.get(TIMEOUT_SECONDS * 3) for answer in waiting]
    return answers[0]


def _on_loopback(rank: int, workers: int, port: int) -> AllReduce:
    from mergevq_platform.distributed.node_interface import interface_of

    os.environ["GLOO_SOCKET_IFNAME"] = interface_of("127.0.0.1") or "lo"
    return measure(rank, workers, "127.0.0.1", port)


def free_port(address: str) -> int:
    """A free port of `address`."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
