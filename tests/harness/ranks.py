"""Ranks as processes of their own, forked from one process that has imported what they need: imports take seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run(rank: Callable[..., None], arguments: tuple[Any, ...], world_size: int) -> None:
    """`rank(number, *arguments)` in `world_size` processes at once; raises what one of them raised."""
    # The process that forks has computed nothing: its children are as good as new ones. The last of its modules takes
    # seconds as well, and every optimizer and DistributedDataParallel imports it.
    multiprocessing.set_forkserver_preload(["mergevq_platform.loop", "torch.distributed", "torch._dynamo"])
    mp.start_processes(rank, arguments, nprocs=world_size, start_method="forkserver")
